"""Using a running server instead of loading a model. Nothing here loads an engine."""
