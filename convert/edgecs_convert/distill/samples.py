"""Answers of a target for training: tokens, best logits, hidden states.

Samples are stored in shards, `.npz` files that are written atomically, so that their
generation can be interrupted and resumed.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgecs.core.context import Tokens
from edgecs.core.files import replacing
from edgecs.core.logits import best_ids
from edgecs.errors import DistillError


class Sample(NamedTuple):
    """One answer of n tokens to a prompt of p.

    Answer token j was chosen from row j of `top_ids` and `top_logits`. States are those
    after consecutive tokens: the target's final ones, from which the next tokens were
    chosen, after the tokens of the answer; or the inputs of some of its layers, side by
    side, after all tokens. There is no state after the last token.
    """

    number: int  # of the question
    temperature: float
    tokens: Tokens  # int32 [p + n]
    start: int  # p
    top_ids: NDArray[np.int32]  # [n, k], the best one first
    top_logits: NDArray[np.float16]  # [n, k]
    states: NDArray[np.float16]  # [n - 1 or p + n - 1, width]

    @property
    def size(self) -> int:
        """The number of tokens of the answer."""
        return int(self.tokens.size) - self.start

    @property
    def stated(self) -> int:
        """The first token with a state after it: p, or 0."""
        return int(self.tokens.size) - 1 - len(self.states)


KEPT = 32  # stored logits of a row
_JOINED = ("tokens", "top_ids", "top_logits", "states")
_WITHOUT = "without"


def write_shard(
    folder: Path, samples: Sequence[Sample], without: Sequence[int] = ()
) -> Path:
    """Writes samples as the next shard of a folder and returns its path.

    without: numbers of questions whose answers are of no use. Raises DistillError if it
    cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{len(shards(folder)):05}.npz"
    arrays: dict[str, NDArray[Any]] = {
        name: np.concatenate([getattr(sample, name) for sample in samples])
        for name in _JOINED
    }
    arrays["heads"] = np.array(
        [(s.number, s.start, s.size, len(s.states)) for s in samples], dtype=np.int64
    )
    arrays["temperatures"] = np.array([s.temperature for s in samples])
    if without:
        arrays[_WITHOUT] = np.array(without, dtype=np.int64)
    try:
        with replacing(path, private=True) as file:
            np.savez(file, allow_pickle=False, **arrays)
    except OSError as error:
        raise DistillError(
            f"{path} cannot be written ({error.strerror}): make room and start again, "
            "earlier samples are kept"
        ) from error
    return path


def shards(folder: Path) -> list[Path]:
    """The shards of a folder in order; empty if there is no folder."""
    return sorted(folder.glob("[0-9]*.npz"))


def sizes(folder: Path) -> dict[int, int]:
    """The answered questions with the tokens of their answers; 0: of no use."""
    found: dict[int, int] = {}
    for path in shards(folder):
        arrays = _load(path, ("heads",), (_WITHOUT,))
        heads = arrays["heads"]
        found.update(dict.fromkeys(arrays.get(_WITHOUT, heads[:0, 0]).tolist(), 0))
        found.update(zip(heads[:, 0].tolist(), heads[:, 2].tolist(), strict=True))
    return found


def numbers(folder: Path) -> tuple[set[int], int]:
    """The questions with an answer, and the tokens of their answers."""
    found = {number: size for number, size in sizes(folder).items() if size}
    return {*found}, sum(found.values())


def last_needed(found: Mapping[int, int], tokens: int) -> int | None:
    """The question up to which answers have so many tokens; None: all have fewer.

    >>> last_needed({0: 5, 2: 5, 1: 5}, 6), last_needed({0: 5}, 6)
    (1, None)
    """
    for number in sorted(found):
        tokens -= found[number]
        if tokens <= 0:
            return number
    return None


def read_samples(folder: Path, most: int | None = None) -> Iterator[Sample]:
    """The samples of a folder, in the order in which they were written.

    most: tokens of answers; then the samples are those of the first questions with so
    many, in their order. Raises DistillError for a damaged shard.
    """
    if most is None:
        yield from _every(folder)
        return
    last = last_needed(sizes(folder), most)
    kept = {s.number: s for s in _every(folder) if last is None or s.number <= last}
    yield from (kept[number] for number in sorted(kept))


def _every(folder: Path) -> Iterator[Sample]:
    for path in shards(folder):
        yield from _samples(_load(path, (*_JOINED, "heads", "temperatures")))


def read_answers(folder: Path) -> Iterator[Tokens]:
    """The tokens of all answers of a folder, without what they were chosen from.

    Raises DistillError for a damaged shard.
    """
    for path in shards(folder):
        arrays, at = _load(path, ("tokens", "heads")), 0
        for _, start, size in arrays["heads"][:, :3].tolist():
            yield arrays["tokens"][at + start : at + start + size]
            at += start + size


def _samples(arrays: dict[str, NDArray[Any]]) -> Iterator[Sample]:
    text = row = state = 0
    heads = arrays["heads"]
    if heads.shape[1] == 3:  # answers of earlier versions, with final states
        heads = np.column_stack((heads, heads[:, 2] - 1))
    for (number, start, size, stated), temperature in zip(
        heads.tolist(), arrays["temperatures"].tolist(), strict=True
    ):
        yield Sample(
            number,
            temperature,
            arrays["tokens"][text : text + start + size],
            start,
            arrays["top_ids"][row : row + size],
            arrays["top_logits"][row : row + size],
            arrays["states"][state : state + stated],
        )
        text, row, state = text + start + size, row + size, state + stated


def _load(
    path: Path, names: Sequence[str], optional: Sequence[str] = ()
) -> dict[str, NDArray[Any]]:
    try:
        # numpy does not close a file that it cannot read.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            there = [name for name in optional if name in file]
            return {name: file[name] for name in (*names, *there)}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DistillError(
            f"{path} cannot be read ({error}): remove it, and its questions "
            "are answered again"
        ) from error


def best(
    rows: NDArray[np.float32], count: int
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The `count` largest values of every row, largest first: indices and values.

    >>> ids, values = best(np.array([[1, 5, 2, 4]], dtype=np.float32), 2)
    >>> ids.tolist(), values.tolist()
    ([[1, 3]], [[5.0, 4.0]])
    """
    shape = len(rows), min(count, rows.shape[1])
    found = [best_ids(row, count) for row in rows]
    ids = np.array(found, dtype=np.int32).reshape(shape)
    return ids, np.take_along_axis(rows, ids, axis=1)
