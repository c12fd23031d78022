"""Tool calls: their syntax in each family of models, as grammars and as parsers."""
