"""Whose fault a failure is: a drafter that fails must not cost an answer.

Wherever a drafter is asked, `blame` turns what it raises into a `Faulty` with its name.
The innermost one counts, so a drafter that reviews another one does not answer for it.
The outermost cascade parks the drafter, and goes on without.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NoReturn

from edgecs.errors import Cancelled, EdgecsError, Faulty, ModelError

_LONGEST = 200  # characters of a reason


def blame(error: Exception, name: str) -> NoReturn:
    """Raises an error as the fault of the drafter `name`.

    Requests to stop, and what another drafter is blamed for, are raised as they are.
    """
    if isinstance(error, (Faulty, Cancelled)):
        raise error
    raise Faulty(name, _reason(error)) from error


def refuse(faults: Mapping[str, str]) -> None:
    """For what is measured with drafters: raises ModelError where one was parked."""
    for name, reason in faults.items():
        raise ModelError(
            f"{name} failed ({reason}), so nothing can be said about it: leave it out"
        )


def _reason(error: Exception) -> str:
    """What an error says, in one line that may be shown."""
    said = next(iter(str(error).strip().splitlines()), "")
    if not (isinstance(error, EdgecsError) and said):
        said = ": ".join(filter(None, (type(error).__name__, said)))
    shown = "".join(c if c.isprintable() else "?" for c in said)
    return shown if len(shown) <= _LONGEST else f"{shown[: _LONGEST - 1]}…"
