"""A chat in the terminal: input, slash commands and rendering."""
