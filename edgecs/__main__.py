"""`python -m edgecs` is the command line."""

from edgecs_cli import main

main()
