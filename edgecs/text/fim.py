"""Prompts for filling in the middle (FIM): code before and after a place.

The order is llama-server's: other files, the prefix, the suffix, and the token after
which a model writes what is between them (arXiv 2207.14255; with other files, Qwen2.5
Coder, arXiv 2409.12186, section 3.2).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from edgecs.core.context import Tokens
from edgecs.core.fim_tokens import FimTokens

# chosen: as in llama-server, what is before a place says more about it.
_BEFORE = 0.75  # share of the prefix where prefix and suffix do not fit
_SNIPPET = "\n\n--- snippet ---\n\n"  # between chunks, for models without separators


class Chunk(NamedTuple):
    """A part of another file."""

    filename: str
    text: str


class Infill(NamedTuple):
    """What is to be filled in. line: follows the prefix, and is never shortened."""

    prefix: str
    suffix: str
    line: str = ""
    extra: Sequence[Chunk] = ()


def infill_prompt(
    infill: Infill,
    fim: FimTokens,
    encode: Callable[[str], Tokens],
    *,
    most: int,
    begin: Sequence[int] = (),
) -> Tokens:
    """The ids of a prompt, int32 [n], n <= most if the line fits.

    encode: the ids of plain text. begin: ids that begin a document. What does not fit
    is left out: first the beginning of the other files, then the beginning of the
    prefix and the end of the suffix.
    """
    before, after, line = map(encode, (infill.prefix, infill.suffix, infill.line))
    room = max(0, most - 3 - len(begin) - line.size)
    if before.size + after.size > room:
        least = int(_BEFORE * room)
        taken = min(before.size, max(least, room - after.size))
        before, after = before[before.size - taken :], after[: room - taken]
    extra = _extra(infill.extra, fim, encode)
    left = room - before.size - after.size
    return np.concatenate(
        [
            extra[max(0, extra.size - left) :],
            _ids(*begin, fim.prefix),
            before,
            line,
            _ids(fim.suffix),
            after,
            _ids(fim.middle),
        ]
    )


def _extra(
    chunks: Sequence[Chunk], fim: FimTokens, encode: Callable[[str], Tokens]
) -> Tokens:
    """The ids of other files, int32 [n]; they end with the name of this one."""
    parts = []
    if fim.repository is not None:
        parts += [_ids(fim.repository), encode("myproject\n")]
    for filename, text in chunks:
        if fim.separator is not None:
            parts += [_ids(fim.separator), encode(f"{filename}\n")]
        else:
            parts.append(encode(_SNIPPET))
        parts.append(encode(text))
    if fim.separator is not None:
        parts += [_ids(fim.separator), encode("filename\n")]
    return np.concatenate([_ids(), *parts])


def _ids(*tokens: int) -> Tokens:
    return np.array(tokens, dtype=np.int32)
