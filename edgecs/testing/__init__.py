"""Public fakes: models, drafters and a tokenizer that need no weights."""
