"""Drafters that need no model."""
