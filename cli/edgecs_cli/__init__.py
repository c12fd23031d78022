"""The command line of edgecs. Importing it loads neither an engine nor click."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Runs the command line; a failure is one sentence on stderr and an exit code."""
    try:
        from edgecs_cli.running import run

        code = run(sys.argv[1:])
    except KeyboardInterrupt:  # during the import
        code = 130
    sys.exit(code)
