"""The header of a GGUF, read without llama.cpp, which aborts on some broken ones.

llama.cpp also gives no lists of numbers, and nothing of a file that is not loaded. Only
numbers, short texts and short lists of numbers are kept. A header may be damaged or
malicious, so every length is checked.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgecs.core.reading import regular_size

Value = int | float | bool | str | list[int] | list[float]

_NUMBERS = {  # GGUF value types, in struct's letters
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_STRING, _ARRAY = 8, 9
_LONGEST = 1 << 20  # bytes of a text that is kept
# chosen: more than the layers of any model.
_MOST = 4096  # numbers in a list that is kept
# chosen: far above any model.
_ENTRIES = 1 << 24  # metadata keys, texts of a list, tensors
_I64 = 27  # ggml type of 64-bit integers


class Tensor(NamedTuple):
    """The place of a tensor in a file."""

    shape: tuple[int, ...]  # in ggml's order
    kind: int  # ggml type
    offset: int  # bytes from the start of the file


@dataclass(frozen=True)
class Header:
    """Metadata and tensors of a GGUF."""

    values: Mapping[str, Value]
    tensors: Mapping[str, Tensor]
    tokens: int = 0  # in its vocabulary

    @property
    def architecture(self) -> str:
        """The architecture; "" if the file does not name one."""
        found = self.values.get("general.architecture")
        return found if isinstance(found, str) else ""

    @property
    def numbers(self) -> Mapping[str, list[float]]:
        """The finite numbers of all keys, each as a list."""
        found = {}
        for key, value in self.values.items():
            if not isinstance(value, str):
                many = value if isinstance(value, list) else [value]
                if all(map(math.isfinite, many)):
                    found[key] = [float(number) for number in many]
        return found

    def own(self, key: str) -> Value | None:
        """A value of the architecture's own keys."""
        return self.values.get(f"{self.architecture}.{key}")

    def integers(self, path: Path, name: str) -> NDArray[np.int64] | None:
        """A list of 64-bit integers among the tensors; None: there is none.

        Raises OSError, or ValueError for a tensor of another type, or outside of the
        file.
        """
        tensor = self.tensors.get(name)
        if tensor is None:
            return None
        if tensor.kind != _I64 or len(tensor.shape) != 1:
            raise ValueError(f"{name} is not a list of 64-bit integers")
        (size,) = tensor.shape
        if tensor.offset + 8 * size > regular_size(path):
            raise ValueError(f"{name} ends after the file")
        return np.fromfile(path, "<i8", size, offset=tensor.offset)


def architecture(path: Path) -> str:
    """The architecture of a GGUF; "" if its header does not give one."""
    try:
        with path.open("rb") as file:
            reader = _Reader(file)
            keys, _ = reader.start()
            for key, value in reader.values(keys):
                if key == "general.architecture":
                    return value if isinstance(value, str) else ""
    except (OSError, ValueError, struct.error, MemoryError):
        pass  # opening the file gives a better message
    return ""


def read_header(path: Path) -> Header:
    """The header of a GGUF; raises OSError, or ValueError for an invalid one."""
    try:
        with path.open("rb") as file:
            reader = _Reader(file)
            keys, count = reader.start()
            values = {k: v for k, v in reader.values(keys) if v is not None}
            places = dict(reader.tensors(count))
            align = values.get("general.alignment", 32)
            if not isinstance(align, int) or not 0 < align <= 1 << 20:
                raise ValueError(f"its alignment is {align}")
            begin = -(-file.tell() // align) * align
    except (struct.error, MemoryError) as error:
        raise ValueError(f"the header of {path.name} ends early") from error
    tensors = {n: t._replace(offset=t.offset + begin) for n, t in places.items()}
    return Header(values, tensors, reader.lengths.get("tokenizer.ggml.tokens", 0))


class _Reader:
    """Reads the parts of a header in order; raises ValueError or struct.error."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.lengths: dict[str, int] = {}  # of lists of texts

    def start(self) -> tuple[int, int]:
        """The number of metadata keys, and of tensors."""
        if self._file.read(4) != b"GGUF":
            raise ValueError("it is not a GGUF")
        version, tensors, keys = self._numbers("IQQ")
        if version not in (2, 3):
            raise ValueError(f"its version is {version}")
        if max(tensors, keys) > _ENTRIES:
            raise ValueError("it has too many entries")
        return keys, tensors

    def values(self, count: int) -> Iterator[tuple[str, Value | None]]:
        """The keys, each with its value; None: it is not kept."""
        for _ in range(count):
            key = self._text()
            (kind,) = self._numbers("I")
            yield key, self._value(kind, key)

    def tensors(self, count: int) -> Iterator[tuple[str, Tensor]]:
        """The tensors, with their offsets in the data."""
        for _ in range(count):
            name = self._text()
            (dimensions,) = self._numbers("I")
            if dimensions > 4:
                raise ValueError(f"a tensor has {dimensions} dimensions")
            shape = tuple(self._numbers("Q" * dimensions))
            kind, offset = self._numbers("IQ")
            yield name, Tensor(shape, kind, offset)

    def _value(self, kind: int, key: str) -> Value | None:
        if kind == _STRING:
            return self._text()
        if kind != _ARRAY:
            found: Value = self._numbers(self._letter(kind))[0]
            return found
        inner, count = self._numbers("IQ")
        if inner == _STRING:
            if count > _ENTRIES:
                raise ValueError("a list is too long")
            for _ in range(count):
                self._skip(self._numbers("Q")[0])
            self.lengths[key] = count
            return None
        letter = self._letter(inner)
        if count > _MOST:
            self._skip(count * struct.calcsize("<" + letter))
            return None
        return list(self._numbers(letter * count))

    def _letter(self, kind: int) -> str:
        if kind not in _NUMBERS:
            raise ValueError(f"a value has the type {kind}")
        return _NUMBERS[kind]

    def _numbers(self, letters: str) -> tuple[int, ...]:
        form = "<" + letters
        return struct.unpack(form, self._file.read(struct.calcsize(form)))

    def _text(self) -> str:
        (size,) = self._numbers("Q")
        if size > _LONGEST:
            raise ValueError("a text is too long")
        return self._file.read(size).decode("utf-8", "replace")

    def _skip(self, size: int) -> None:
        if size > 1 << 40:
            raise ValueError("a list is too long")
        self._file.seek(size, 1) if size > 1 << 13 else self._file.read(size)
