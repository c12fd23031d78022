"""The APIs: paths, request bodies, and the form of their answers."""
