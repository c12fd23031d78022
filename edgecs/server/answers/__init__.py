"""Answers to requests, whichever API they came by."""
