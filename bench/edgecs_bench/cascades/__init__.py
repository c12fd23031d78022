"""Quality against speed for speculative cascades and their baselines."""
