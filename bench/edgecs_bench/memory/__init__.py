"""Drafts from texts of earlier turns and sessions: traces, replays and real runs."""
