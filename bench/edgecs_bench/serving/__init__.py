"""Load tests of servers: edgecs and llama.cpp's, in turn on the same prompts."""
