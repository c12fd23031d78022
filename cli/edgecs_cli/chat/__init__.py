"""A chat in the terminal: what is typed, what a slash does, how answers look."""
