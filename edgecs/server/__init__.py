"""Answers for many clients at once, over HTTP."""
