"""Measure a target and its drafters carefully, and choose the drafters to use."""
