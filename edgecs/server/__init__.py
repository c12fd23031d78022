"""The HTTP server: several clients share one loaded model."""
