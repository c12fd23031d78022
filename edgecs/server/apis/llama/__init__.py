"""llama-server's own API: completions, and infilling of code."""
