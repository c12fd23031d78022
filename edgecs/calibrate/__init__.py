"""Measurements of a target on this machine, stored between runs."""
