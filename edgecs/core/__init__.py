"""Data types of a round, and safe reading and writing of files."""
