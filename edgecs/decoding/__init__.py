"""Rounds of drafting and verification (CS Drafting, arXiv 2312.11462)."""
