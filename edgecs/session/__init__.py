"""One answer: a stream of tokens, its statistics and its trace."""
