"""Runs one command; a failure becomes a sentence on stderr and an exit code."""

from __future__ import annotations

import io
import os
import sys

import click

from edgecs_cli.app import cli
from edgecs_cli.console import abandon, complain

EXIT_CODES = {
    0: "success",
    1: "an error without a code of its own, or output cannot be written",
    2: "an invalid option, or an invalid prompt (empty, not UTF-8, too long)",
    3: "a model is missing, damaged, incompatible or in use",
    4: "out of memory",
    5: "drafts changed an answer under `--exact strict` (`edgecs audit`)",
    6: "a download failed, or the disk is full; the next pull resumes it",
    7: "training a drafter failed; finished work is kept (`edgecs distill`)",
    8: "a worker of `--rpc` cannot be used, or was lost; a chat is saved",
    129: "the terminal was closed (SIGHUP); a chat is saved",
    130: "stopped with Ctrl-C",
    131: "ended with Ctrl-\\ (SIGQUIT); a chat is saved",
    141: "standard output was closed by its reader",
    143: "ended with SIGTERM; a chat is saved",
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
        if isinstance(error.__cause__, EOFError):  # click's Abort for Ctrl-D
            return _failed("edgecs", "the input ended unexpectedly", 1)
        return _failed("edgecs", "stopped", 130)
    except OSError as error:  # from click's own output
        abandon(sys.stdout)
        return _failed("edgecs", f"cannot write to standard output: {error}", 1)
    return result if isinstance(result, int) else 0


def _failed(who: str, problem: str, code: int) -> int:
    """Prints a problem, if stderr still works; returns the code."""
    try:
        complain(who, problem)
    except OSError:
        abandon(sys.stderr)
    return code


def _prepare_streams() -> None:
    """Replaces closed streams, and rules out encoding errors.

    Files and pipes get UTF-8; a terminal shows a replacement for a character that it
    cannot encode.
    """
    # These stay open as long as the process.
    sys.stdin = sys.stdin or open(os.devnull)  # noqa: SIM115
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            encoding = None if stream.isatty() else "utf-8"
            stream.reconfigure(encoding=encoding, errors="replace")
