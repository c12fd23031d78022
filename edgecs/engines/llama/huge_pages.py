"""Huge pages for the data of every call: weights, KV cells, buffers (Linux).

A token reads all weights once. With pages of 4 KiB a large part of that time is spent
on address translation, especially in virtual machines, which translate twice. Linux
provides pages of 2 MiB on request (madvise), which llama.cpp does not use. The bits are
the same. A mapped file cannot have them: only weights that were repacked, or read into
memory.
"""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Iterator
from pathlib import Path

_SIZE = 2 << 20  # bytes of a huge page
# chosen: two huge pages; less is not worth a system call.
_LEAST = 4 << 20  # bytes of the smallest mapping that is advised
_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) rw\S+ \S+ \S+ 0 *$")
_HUGEPAGE, _COLLAPSE = 14, 25  # MADV_*, see madvise(2)
OFF = "switched off"
_IN_WORDS = {
    "always": "always",
    "madvise": "on request",
    "never": OFF,
}
_SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")

Range = tuple[int, int]


class HugePages:
    """Requests huge pages for all memory that is allocated after its creation.

    It does nothing if the system has none; a failed request only affects the speed.
    """

    def __init__(self, wanted: bool) -> None:
        self._before = set(_mappings()) if wanted and available() else None

    def ask(self) -> None:
        """Request huge pages for memory that was not written yet."""
        self._advise(_HUGEPAGE)

    def collapse(self) -> None:
        """Merge the pages of memory that is already in use."""
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
    """Whether this system provides huge pages on request."""
    setting = _setting()
    return sys.platform == "linux" and bool(setting) and "[never]" not in setting


def setting() -> str:
    """Description of the system's setting."""
    chosen = re.search(r"\[(\w+)\]", _setting())
    return _IN_WORDS.get(chosen[1] if chosen else "", "none on this system")


def _setting() -> str:
    try:
        return _SETTING.read_text()
    except OSError:
        return ""


def _mappings() -> Iterator[Range]:
    """Large private anonymous mappings of this process."""
    with open("/proc/self/maps") as maps:
        for line in maps:
            found = _MAPPING.match(line)
            if found:
                start, end = int(found[1], 16), int(found[2], 16)
                if end - start >= _LEAST:
                    yield start, end
