"""Opening models for a command, and describing them."""
