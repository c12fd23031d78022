"""Huge pages for what every call reads: weights, KV cells, buffers (Linux).

A token reads all weights once, and in pages of 4 KiB a good part of that time goes into
looking up where they are, most of all in virtual machines, which look twice. Linux has
pages of 2 MiB for memory that asks for them, and llama.cpp does not ask. The bits are
the same. A file that is mapped cannot have them: only weights that were laid out anew,
or read into memory.
"""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Iterator
from pathlib import Path

_SIZE = 2 << 20  # bytes of a huge page
# chosen: two huge pages; less is not worth a call of the system.
_LEAST = 4 << 20  # bytes of a mapping that is worth asking for
_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) rw\S+ \S+ \S+ 0 *$")
_HUGEPAGE, _COLLAPSE = 14, 25  # MADV_*, see madvise(2)
OFF = "switched off"
_IN_WORDS = {
    "always": "for everybody",
    "madvise": "on request",
    "never": OFF,
}
_SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")

Range = tuple[int, int]


class HugePages:
    """Asks for them on behalf of whatever is allocated from now on.

    Nothing happens where the system has none, and a refusal changes nothing but speed.
    """

    def __init__(self, wanted: bool) -> None:
        self._before = set(_mappings()) if wanted and available() else None

    def ask(self) -> None:
        """For memory that is not written yet: it comes in huge pages when it is."""
        self._advise(_HUGEPAGE)

    def collapse(self) -> None:
        """For memory that is in use already: its pages are put together now."""
        self._advise(_HUGEPAGE)
        self._advise(_COLLAPSE)

    def _advise(self, advice: int) -> None:
        if self._before is None:
            return
        madvise = ctypes.CDLL(None).madvise
        for start, end in set(_mappings()) - self._before:
            first, last = -(-start // _SIZE) * _SIZE, end // _SIZE * _SIZE
            if first < last:
                size = ctypes.c_size_t(last - first)
                madvise(ctypes.c_void_p(first), size, advice)


def available() -> bool:
    """Whether this system gives huge pages to memory that asks for them."""
    setting = _setting()
    return sys.platform == "linux" and bool(setting) and "[never]" not in setting


def setting() -> str:
    """The system's setting, in words."""
    chosen = re.search(r"\[(\w+)\]", _setting())
    return _IN_WORDS.get(chosen[1] if chosen else "", "none on this system")


def _setting() -> str:
    try:
        return _SETTING.read_text()
    except OSError:
        return ""


def _mappings() -> Iterator[Range]:
    """Large private mappings of this process that no file is behind."""
    with open("/proc/self/maps") as maps:
        for line in maps:
            found = _MAPPING.match(line)
            if found:
                start, end = int(found[1], 16), int(found[2], 16)
                if end - start >= _LEAST:
                    yield start, end
