"""From model files to a session that is ready to answer."""
