"""The options of the commands, and what they say in Python's types."""
