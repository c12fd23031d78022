"""Adapters, one for each runtime: run by `speak.py` under that runtime's interpreter.

They import nothing of edgecs, and edgecs imports none of them.
"""
