"""A pseudo-terminal with a chat on it, as the tests of chats and the fuzzer use it."""

from __future__ import annotations

import os
import re
import select
import signal
import struct
import subprocess
import sys
import threading
import time

import click


class Terminal:
    """A chat on a pseudo-terminal: what is typed, and what was written so far.

    XDG folders are those of the test session unless a test has its own.
    """

    def __init__(
        self,
        *arguments: object,
        term: str = "xterm-256color",
        rows: int = 24,
        columns: int = 80,
    ) -> None:
        import pty

        ours, theirs = pty.openpty()
        self._fd, self.text, self._closing = ours, "", False
        self.resize(rows, columns)
        self._lock = threading.Lock()
        environment = {**os.environ, "TERM": term, "PROMPT_TOOLKIT_NO_CPR": "1"}
        environment.setdefault("EDGECS_MEMORY", "off")  # a chat would ask first
        environment.pop("NO_COLOR", None)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "edgecs_cli", "chat", *map(str, arguments)],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environment,
            start_new_session=True,
            preexec_fn=_take_terminal,
        )
        os.close(theirs)
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()

    def _read(self) -> None:
        while not self._closing:
            if not select.select([self._fd], [], [], 0.05)[0]:
                continue
            try:
                data = os.read(self._fd, 4096)
            except OSError:
                return
            if not data:
                return
            with self._lock:
                self.text += data.decode("utf-8", "replace")

    def wait(self, pattern: str, seconds: float = 60) -> str:
        """What was written up to a match behind the last one."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            with self._lock:
                text = click.unstyle(self.text)
                if found := re.search(pattern, text):
                    self.text = text[found.end() :]
                    return text[: found.end()]
            time.sleep(0.02)
        raise AssertionError(f"no {pattern!r} in {self.text!r}")

    def resize(self, rows: int, columns: int) -> None:
        import fcntl
        import termios

        size = struct.pack("HHHH", rows, columns, 0, 0)
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, size)

    def type(self, text: str) -> None:
        """Surrogates are bytes of their own: any bytes can be typed."""
        os.write(self._fd, text.encode("utf-8", "surrogateescape"))

    def hang_up(self) -> None:
        """The window is closed."""
        self._closing = True
        # One that reads would keep it open, or read from the next one of its number.
        self._reading.join()
        os.close(self._fd)
        self._fd = -1

    def end(self) -> int:
        code = self.process.wait(30)
        if self._fd >= 0:
            self._reading.join(1)  # it ends when all that was written is read
            self.hang_up()
        return code


def _take_terminal() -> None:
    import fcntl
    import termios

    # Whoever runs the tests with nohup has it ignored, and so would the chat.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
