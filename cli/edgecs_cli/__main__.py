"""`python -m edgecs_cli` is the command line."""

from edgecs_cli import main

main()
