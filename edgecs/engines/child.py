"""Child Python processes, for code that may crash its process."""

from __future__ import annotations

import signal
import sys
from contextlib import suppress

_NTSTATUS = 0xC0000000  # Windows: an exit code from here on is a fault
FAULTS = ("SIGSEGV", "SIGILL", "SIGBUS", "SIGABRT", "SIGFPE")


def can_start() -> bool:
    """Whether a Python interpreter can be started: a frozen application has none."""
    return bool(sys.executable) and not getattr(sys, "frozen", False)


def command(script: str, *arguments: str) -> list[str]:
    """The command line of a script with its arguments, followed by sys.path.

    -P prevents imports from the current folder.
    """
    return [sys.executable, "-P", "-c", script, *arguments, *sys.path]


def ended_by(code: int) -> str:
    """The name of the signal or fault that ended a process; "" for an exit code.

    >>> ended_by(-6), ended_by(0xC0000005), ended_by(3)
    ('SIGABRT', 'fault 0xc0000005', '')
    """
    if code >= _NTSTATUS:
        return f"fault {code:#x}"
    if code >= 0:
        return ""
    names = {int(number): number.name for number in signal.Signals}
    return names.get(-code, f"signal {-code}")


def is_fault(code: int) -> bool:
    """Whether a process crashed by itself, and was not ended from outside."""
    return code >= _NTSTATUS or ended_by(code) in FAULTS


def prepare(seconds: float, memory: int) -> None:
    """In the child: disable core files and limit the run time and the memory in bytes.

    Limits that the system does not support are skipped.
    """
    if hasattr(signal, "setitimer"):  # not on Windows
        signal.setitimer(signal.ITIMER_REAL, seconds)
    with suppress(ImportError):
        import resource

        for kind, most in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_DATA, memory)):
            with suppress(ValueError, OSError):  # macOS rejects some
                resource.setrlimit(kind, (most, most))
