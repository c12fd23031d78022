"""Nothing calls home: native code may open no socket and ask for no name.

What is refused in Python's socket module is not refused to a library, so these tests
put functions of their own in front of libc's (LD_PRELOAD), which note the attempt and
fail. What a library keeps to send later would show up in the home folder.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

_SHIM = r"""
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static void note(const char *what) {
    int file = open(getenv("SHIM_LOG"), O_WRONLY | O_CREAT | O_APPEND, 0600);
    if (file >= 0) {
        (void)!write(file, what, strlen(what));
        close(file);
    }
}

int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints,
                struct addrinfo **found) {
    note("getaddrinfo\n");
    return EAI_FAIL;
}

int connect(int fd, const struct sockaddr *address, socklen_t size) {
    if (address->sa_family != AF_UNIX) note("connect\n");
    errno = EACCES;
    return -1;
}
"""

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not shutil.which("cc"),
    reason="LD_PRELOAD and a C compiler are needed",
)


class Watched:
    """Runs Python code in a home of its own, where the network is refused."""

    def __init__(self, folder: Path) -> None:
        self.home, self.log = folder / "home", folder / "attempts"
        self._library = folder / "refuse.so"
        self.home.mkdir()
        source = folder / "refuse.c"
        source.write_text(_SHIM)
        command = ["cc", "-shared", "-fPIC", "-o", self._library, source]
        subprocess.run(command, check=True, capture_output=True)

    def run(self, code: str) -> str:
        """What the code prints."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("XDG_", "EDGECS_")) and name != "CI"
        }
        kept.pop("ORT_DISABLE_TELEMETRY", None)
        own = {"LD_PRELOAD": self._library, "SHIM_LOG": self.log, "HOME": self.home}
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**kept, **{name: str(value) for name, value in own.items()}},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    @property
    def attempts(self) -> str:
        """What reached for the network."""
        return self.log.read_text() if self.log.exists() else ""

    def left_behind(self) -> set[str]:
        """Files in the home folder, edgecs's own apart."""
        files = [file for file in self.home.rglob("*") if file.is_file()]
        names = {file.relative_to(self.home).as_posix() for file in files}
        return {name for name in names if not name.startswith(".cache/edgecs/")}


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path)


def test_what_is_refused_is_noted(watched: Watched):
    watched.run(
        "import socket\n"
        "try: socket.getaddrinfo('example.org', 80)\n"
        "except OSError: pass\n"
    )
    assert "getaddrinfo" in watched.attempts


def test_doctor_calls_nobody_and_leaves_nothing(watched: Watched):
    said = watched.run("from edgecs_cli.running import run; run(['doctor'])")
    assert "onnx" in said.lower()
    assert not watched.attempts
    assert not watched.left_behind()


@pytest.mark.parametrize(
    "module",
    [
        "edgecs.engines.onnx.decoder",
        "edgecs.engines.onnx.head",
        "edgecs_convert.onnx.export",
        "edgecs_convert.distill.export",
    ],
)
def test_every_way_to_onnx_runtime_is_quiet(watched: Watched, module: str):
    watched.run(f"import {module}\nimport onnxruntime as ort\nort.get_device()")
    assert not watched.attempts
    assert not watched.left_behind()
