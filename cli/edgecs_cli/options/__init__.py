"""Command-line options, and their values as Python types."""
