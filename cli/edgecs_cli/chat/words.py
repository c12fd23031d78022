"""What several commands need: words for values, and their checks."""

from __future__ import annotations

from edgecs.errors import ConfigError


def number(name: str, value: str, *, whole: bool) -> float:
    """Parses a number. Raises ConfigError."""
    try:
        return int(value) if whole else float(value)
    except ValueError as error:
        kind = "a whole number" if whole else "a number"
        raise ConfigError(f"{name} must be {kind}, got {value!r}") from error


def switch(name: str, value: str) -> bool:
    """Parses on or off. Raises ConfigError."""
    one_of(name, value, ("on", "off"))
    return value == "on"


def one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    """Raises ConfigError for a value that is not known."""
    if value not in known:
        raise ConfigError(f"{name} must be {' or '.join(known)}, got {value!r}")


def onoff(value: bool) -> str:
    """The word for a switch."""
    return "on" if value else "off"


def short(text: str, most: int = 60) -> str:
    """A text in a line of at most `most` characters."""
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1] + "…"
