"""Conversations: turns, what is left out when they grow too long, and their files."""
