"""Running one command: what fails becomes a sentence on stderr, and an exit code."""

from __future__ import annotations

import io
import os
import sys

import click

from edgecs_cli.app import cli
from edgecs_cli.console import abandon, complain

EXIT_CODES = {
    0: "all went well",
    1: "something failed that has no code of its own, or nothing more can be written",
    2: "a wrong option, or a prompt that cannot be used (empty, not UTF-8, too long)",
    3: "a model that is missing, damaged, incompatible or in use",
    4: "out of memory",
    5: "drafts changed an answer that strict had promised (`edgecs audit`)",
    6: "a download failed, or the disk is full; the next pull goes on where it stopped",
    7: "making a drafter cannot go on; what was done is kept (`edgecs distill`)",
    129: "the terminal was closed (SIGHUP); a chat is kept",
    130: "stopped with Ctrl-C",
    131: "ended with Ctrl-\\ (SIGQUIT); a chat is kept",
    141: "the reader of standard output went away",
    143: "ended with SIGTERM; a chat is kept",
}


def run(arguments: list[str]) -> int:
    """Runs one command and returns its exit code."""
    _prepare_streams()
    try:
        result = cli.main(arguments, prog_name="edgecs", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        return _failed("", error.format_message(), error.exit_code)
    except click.ClickException as error:
        where = getattr(error, "ctx", None)
        code = getattr(error, "code", error.exit_code)
        return _failed(
            where.command_path if where else "edgecs", error.format_message(), code
        )
    except (KeyboardInterrupt, click.Abort) as error:
        if isinstance(error.__cause__, EOFError):  # click takes it for a Ctrl-D
            return _failed("edgecs", "the input ended where more was expected", 1)
        return _failed("edgecs", "stopped", 130)
    except OSError as error:  # of click's own texts: commands name what failed
        abandon(sys.stdout)
        return _failed("edgecs", f"cannot write to standard output: {error}", 1)
    return result if isinstance(result, int) else 0


def _failed(who: str, problem: str, code: int) -> int:
    """Says so, unless nothing can be said any more; returns the code."""
    try:
        complain(who, problem)
    except OSError:
        abandon(sys.stderr)
    return code


def _prepare_streams() -> None:
    """Closed streams become empty ones; no character can end a program.

    Files and pipes get UTF-8 everywhere; a terminal that cannot show a character
    shows a mark for it.
    """
    # These stay open as long as the process.
    sys.stdin = sys.stdin or open(os.devnull)  # noqa: SIM115
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            encoding = None if stream.isatty() else "utf-8"
            stream.reconfigure(encoding=encoding, errors="replace")
