"""Prompts to answer, and what is found out about the answers."""
