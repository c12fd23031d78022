"""Constraints on answers, as masks over the vocabulary: GBNF, JSON schema, Lark."""
