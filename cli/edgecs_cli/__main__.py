"""Runs the command line: `python -m edgecs_cli`."""

from edgecs_cli import main

main()
