"""Attributes failures to drafters, so that a failing drafter does not end an answer.

Where a drafter is called, `blame` converts its exception to a `Faulty` with its name.
The innermost drafter counts, so one that reviews another is not blamed for it. The
outermost cascade disables the drafter and continues without it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NoReturn

from edgecs.errors import Cancelled, EdgecsError, Faulty, ModelError

_LONGEST = 200  # characters of a reason


def blame(error: Exception, name: str) -> NoReturn:
    """Raises an error as a `Faulty` of the drafter `name`.

    `Cancelled`, and a `Faulty` of another drafter, are raised unchanged.
    """
    if isinstance(error, (Faulty, Cancelled)):
        raise error
    raise Faulty(name, _reason(error)) from error


@contextmanager
def blaming(name: str) -> Iterator[None]:
    """A block whose errors are raised as those of a drafter, see `blame`."""
    try:
        yield
    except Exception as error:
        blame(error, name)


def refuse(faults: Mapping[str, str]) -> None:
    """Raises ModelError if a drafter failed, for measurements with drafters."""
    for name, reason in faults.items():
        raise ModelError(
            f"{name} failed ({reason}), so it cannot be measured: leave it out"
        )


def _reason(error: Exception) -> str:
    """An error's message as one printable line."""
    said = next(iter(str(error).strip().splitlines()), "")
    if not (isinstance(error, EdgecsError) and said):
        said = ": ".join(filter(None, (type(error).__name__, said)))
    shown = "".join(c if c.isprintable() else "?" for c in said)
    return shown if len(shown) <= _LONGEST else f"{shown[: _LONGEST - 1]}…"
