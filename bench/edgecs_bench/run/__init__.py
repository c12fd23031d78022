"""Runs of `edgecs bench`: modes, blocks, journal and result."""
