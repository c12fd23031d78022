"""Commands under the names that Ollama gives them, made of those in `commands`."""
