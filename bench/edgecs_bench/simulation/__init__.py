"""Replay of recorded answers with measured or given call times."""
