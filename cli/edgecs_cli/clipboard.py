"""The text of the clipboard, read by the program that the system has for it."""

from __future__ import annotations

import shutil
import subprocess

from edgecs.errors import ConfigError

_PROGRAMS = (
    ("pbpaste",),  # macOS
    ("wl-paste", "--no-newline"),  # Wayland
    ("xclip", "-selection", "clipboard", "-o"),  # X11
    ("xsel", "--clipboard", "--output"),
    ("powershell.exe", "-NoProfile", "-Command", "Get-Clipboard -Raw"),
)
_PATIENCE = 10.0  # seconds


def read_clipboard() -> bytes:
    """What is in the clipboard. Raises ConfigError."""
    for program in _PROGRAMS:
        if shutil.which(program[0]) is None:
            continue
        try:
            done = subprocess.run(
                program,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_PATIENCE,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            continue
        if done.returncode == 0:
            return done.stdout
    names = ", ".join(program[0] for program in _PROGRAMS[:-1])
    raise ConfigError(
        f"the clipboard cannot be read (none of {names} works here): save the text in "
        "a file and add that"
    )
