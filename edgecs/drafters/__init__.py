"""Model-free drafters."""
