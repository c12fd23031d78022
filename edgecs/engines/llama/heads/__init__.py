"""Heads in llama.cpp: drafters that read the hidden states of their target.

An EAGLE-3 or DFlash GGUF reads the inputs of some of its layers, an MTP head in the
target's own file its final states. llama.cpp gives these by functions that it calls
experimental.
"""
