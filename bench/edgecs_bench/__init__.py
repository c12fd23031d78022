"""Benchmarks: each a module, a table and one JSON object as the last line."""
