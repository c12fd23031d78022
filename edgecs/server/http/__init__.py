"""Connections, access, bodies and errors: what has to do with HTTP and no model."""
