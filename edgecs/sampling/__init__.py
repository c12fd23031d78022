"""Sampling from a row of logits: llama.cpp's samplers as pure functions."""
