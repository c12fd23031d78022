"""llama.cpp as a target and as a drafter, with edgecs's own kernels inside."""
