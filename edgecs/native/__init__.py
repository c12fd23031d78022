"""The CPU kernels in C++, and their build; engines/llama calls them."""
