"""Workers: other processes, mostly on other hosts, that hold layers of a target.

They speak the protocol of ggml's RPC backend. This package needs no llama.cpp.
"""
