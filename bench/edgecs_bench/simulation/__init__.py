"""Recorded answers played again on costs that are measured or given."""
