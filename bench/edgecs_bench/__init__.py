"""Benchmarks: each module prints a table, and a JSON object as the last line."""
