"""What an answer may be, as a mask over the vocabulary: GBNF, JSON schema, Lark."""
