"""Conversations: turns, context overflow, and saved files."""
