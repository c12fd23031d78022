"""Tables and pictures of the documentation, generated from bench/results."""
