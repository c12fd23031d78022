"""Heads in llama.cpp: drafters that read the hidden states of their target.

An EAGLE-3 GGUF reads the inputs of three of its layers. llama.cpp gives these states by
functions that it calls experimental; `experimental` binds them.
"""
