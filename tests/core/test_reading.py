"""Files and values that others wrote: only regular files are opened, all is shown."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecs.core.reading import (
    check_model,
    plain,
    read_bounded,
    read_given,
    reason,
    regular_size,
    shown,
)
from edgecs.errors import ModelError

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(path))  # the name of a socket must be short


SPECIAL: dict[str, tuple[Callable[[Path], Any], str]] = {
    "pipe": (os.mkfifo, "a named pipe"),
    "socket": (_socket, "a socket"),
    "folder": (os.mkdir, "a folder"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "a device"),
}


@pytest.fixture(params=SPECIAL)
def special(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, str]:
    """What must not be opened, and what it is; opening anything fails."""
    make, kind = SPECIAL[request.param]
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "it")

    def refuse(*arguments: object, **more: object) -> None:
        raise AssertionError("it was opened")

    monkeypatch.setattr(Path, "open", refuse)
    return tmp_path / "it", kind


def test_what_is_not_a_regular_file_is_not_opened(special: tuple[Path, str]):
    path, kind = special
    with pytest.raises(OSError, match=f"it is {kind}, not a regular file"):
        read_bounded(path, 100)
    with pytest.raises(ModelError, match="is a folder: give the .gguf|" + kind):
        check_model(path)


def test_no_more_is_read_than_is_allowed(tmp_path: Path):
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert regular_size(path) == 5
    assert read_bounded(path, 5) == b"12345"
    with pytest.raises(OSError, match="it has more than 4 bytes"):
        read_bounded(path, 4)
    with pytest.raises(FileNotFoundError):
        read_bounded(tmp_path / "none", 4)


def test_what_a_shell_gives_is_read_but_no_more_than_is_allowed(tmp_path: Path):
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert read_given(path, 5) == b"12345"
    with pytest.raises(OSError, match="it has more than 4 bytes"):
        read_given(path, 4)
    with pytest.raises(IsADirectoryError):
        read_given(tmp_path, 4)
    if os.name == "posix":
        with pytest.raises(OSError, match="it has more than 2 MiB"):
            read_given(Path("/dev/zero"), 2 << 20)


@pytest.mark.skipif(os.name != "posix", reason="has no named pipes")
def test_a_pipe_is_read_to_its_end_and_one_without_a_writer_is_empty(tmp_path: Path):
    pipe, said = tmp_path / "pipe", b"x" * 100_000  # more than a pipe holds
    os.mkfifo(pipe)
    assert read_given(pipe, 10) == b""
    opened = threading.Event()

    def write() -> None:
        with os.fdopen(os.open(pipe, os.O_RDWR), "wb") as file:
            opened.set()
            file.write(said)

    writer = threading.Thread(target=write)
    writer.start()
    opened.wait()
    assert read_given(pipe, len(said)) == said
    writer.join()


@given(text=st.text())
def test_a_foreign_text_becomes_a_part_of_a_line(text: str):
    said = plain(text)
    assert len(said) <= 200
    assert len(f"a{said}b".splitlines()) == 1
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in said)
    said.encode()
    if text.isprintable() and len(text) <= 200:
        assert said == text


@given(value=values)
def test_a_value_can_always_be_shown(value: Any):
    assert plain(shown(value)) == shown(value) != ""


def test_a_table_of_any_depth_can_be_shown():
    deep: dict[str, Any] = {}
    for _ in range(50_000):
        deep = {"a": deep}
    assert shown(deep) == "a table"
    assert shown([deep]) == "a list"
    assert shown(10**5000) == "a number of 16610 bits"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(2, "No such file", "/a"), "No such file"),
        (ValueError("one\ntwo"), "one"),
        (ValueError(), "ValueError"),
    ],
)
def test_a_reason_is_a_few_words(error: Exception, words: str):
    assert reason(error) == words
