"""Huge pages: asked for where there are any, and nothing but speed depends on them."""

from __future__ import annotations

import mmap
import re
from pathlib import Path

import numpy as np
import pytest

from edgecs.core.context import Context
from edgecs.core.draft import score_one
from edgecs.engines.llama import huge_pages
from edgecs.engines.llama.huge_pages import HugePages
from edgecs.engines.load_options import LoadOptions
from edgecs.runtime.loader import load

MIB = 1 << 20
PRIVATE = getattr(mmap, "MAP_PRIVATE", 0) | getattr(mmap, "MAP_ANONYMOUS", 0)
needs_them = pytest.mark.skipif(
    not huge_pages.available(), reason="this system gives no huge pages on request"
)


def huge_kib() -> int:
    text = Path("/proc/self/smaps_rollup").read_text()
    found = re.search(r"AnonHugePages: +(\d+)", text)
    assert found
    return int(found[1])


@needs_them
@pytest.mark.parametrize("when", ["before", "after"])
def test_large_memory_gets_them_written_or_not(when: str):
    pages, before = HugePages(wanted=True), huge_kib()
    with mmap.mmap(-1, 64 * MIB, flags=PRIVATE) as memory:
        if when == "before":
            pages.ask()
        memory.write(b"\1" * 64 * MIB)
        if when == "after":
            pages.collapse()
        # A system that is short of them may give fewer.
        assert huge_kib() - before >= 32 * 1024


@needs_them
def test_what_was_there_before_is_left_alone():
    with mmap.mmap(-1, 64 * MIB, flags=PRIVATE) as memory:
        memory.write(b"\1" * 64 * MIB)
        pages, before = HugePages(wanted=True), huge_kib()
        pages.collapse()
        assert huge_kib() == before


@pytest.mark.parametrize("wanted", [True, False])
def test_a_system_without_them_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, wanted: bool
):
    def never(*args: object) -> None:
        raise AssertionError("asked")

    monkeypatch.setattr(huge_pages, "_SETTING", Path("/nowhere"))
    monkeypatch.setattr(huge_pages.ctypes, "CDLL", never)
    pages = HugePages(wanted)
    pages.ask()
    pages.collapse()
    assert huge_pages.setting() == "none on this system"


@pytest.mark.parametrize("setting", ["always madvise [never]", "", "odd [thing]"])
def test_the_setting_is_told_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str
):
    file = tmp_path / "enabled"
    file.write_text(setting)
    monkeypatch.setattr(huge_pages, "_SETTING", file)
    told = {"": "none on this system", "odd [thing]": "none on this system"}
    assert huge_pages.setting() == told.get(setting, "switched off")
    if setting.endswith("[never]"):
        assert not huge_pages.available()


def test_the_bits_are_the_same(tiny_gguf: Path):
    rows = []
    for wanted in (True, False):
        options = LoadOptions(n_ctx=256, huge_pages=wanted)
        with load(tiny_gguf, options) as loaded:
            row = score_one(loaded.target, Context([1, 2, 3])).logits
            rows.append(np.array(row))
    assert np.array_equal(*rows)
