"""Build ready-to-use sessions from model files."""
