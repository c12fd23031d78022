"""The CPU kernels in C++, and how they are compiled; engines/llama calls them."""
