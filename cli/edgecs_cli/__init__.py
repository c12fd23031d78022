"""The command line of edgecs. Importing this loads no engine and not even click."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Runs the command line; every failure is one sentence on stderr and a code."""
    try:
        from edgecs_cli.running import run

        code = run(sys.argv[1:])
    except KeyboardInterrupt:  # while the rest was imported
        code = 130
    sys.exit(code)
