"""Tables and pictures in the documents, made from bench/results."""
