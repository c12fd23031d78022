"""Ollama's API: chats, generations, models."""
