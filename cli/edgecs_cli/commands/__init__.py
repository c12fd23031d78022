"""The commands, one module each; it is imported when the command is called."""
