"""Loaded models: each has an engine, and a pool loads and frees them."""
