"""Models opened as a command's options say, and described in words."""
