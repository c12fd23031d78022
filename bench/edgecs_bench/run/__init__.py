"""Runs of `edgecs bench`: modes, blocks, the journal and the result."""
