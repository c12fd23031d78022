"""Measuring a target and its drafters with care, and choosing who drafts."""
