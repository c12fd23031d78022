"""Whether two models have the same tokens: the identity of a tokenizer, and its check.

The identity is the texts of all real tokens in order, special tokens as written. This
module is independent of engines, and of how a text is tokenised.

>>> vocabulary_hash([b"a", b"b", b""]) == vocabulary_hash([b"a", b"b", b"[PAD2]"])
True
>>> vocabulary_hash([b"ab", b"c"]) == vocabulary_hash([b"a", b"bc"])
False
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

from edgecs.core.reading import read_bounded, reason
from edgecs.errors import ModelError

_LARGEST = 64 << 20  # bytes; a vocabulary of 256,000 tokens has 3 MB
_PADDING = re.compile(rb"\[PAD\d+\]")


def real_size(pieces: Sequence[bytes], unused: Sequence[bool] = ()) -> int:
    """The number of leading real tokens; the rest pads the matrices of a model.

    pieces: texts, special tokens as written. unused: whether the tokenizer itself
    flags a token as unused, for as many as are known.
    """
    size = len(pieces)
    while size and _pads(pieces[size - 1], size <= len(unused) and unused[size - 1]):
        size -= 1
    return size


def _pads(piece: bytes, unused: bool) -> bool:
    return unused or not piece or _PADDING.fullmatch(piece) is not None


def vocabulary_hash(pieces: Sequence[bytes]) -> str:
    """The identity of a tokenizer: sha256 hex of its real tokens' texts in order."""
    digest = hashlib.sha256()
    for piece in pieces[: real_size(pieces)]:
        digest.update(len(piece).to_bytes(4, "little"))
        digest.update(piece)
    return digest.hexdigest()


def check_same(
    target: Sequence[bytes],
    drafter: str,
    drafter_pieces: Sequence[bytes] | None = None,
    *,
    target_name: str,
    drafter_name: str,
) -> None:
    """Raises ModelError unless both have the same tokens under the same ids.

    drafter: its vocabulary hash. If its texts are given, the message names the first
    token that differs.
    """
    if vocabulary_hash(target) == drafter:
        return
    names = f"{drafter_name} cannot draft for {target_name}"
    if drafter_pieces is None:
        raise ModelError(
            f"{names}: their tokenizers differ (the drafter has no token texts, so the "
            "first difference is unknown); use a drafter made for this model"
        )
    raise ModelError(
        f"{names}: {_difference(target, drafter_pieces)}; use a drafter made for this "
        "model"
    )


def write_pieces(path: Path, pieces: Sequence[bytes]) -> None:
    """Writes the real tokens' texts as a JSON list, bytes as latin-1 characters."""
    texts = [piece.decode("latin-1") for piece in pieces[: real_size(pieces)]]
    text = json.dumps(texts, ensure_ascii=False, separators=(",", ":"))
    path.write_text(text, encoding="utf-8")


def read_pieces(path: Path, expected: str) -> list[bytes]:
    """Reads texts of `write_pieces`. Raises ModelError if their hash differs."""
    try:
        texts = json.loads(read_bounded(path, _LARGEST))
        pieces = [text.encode("latin-1") for text in texts]
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(
            f"{path} cannot be read as a list of token texts ({reason(error)}): fetch "
            "or export the drafter again"
        ) from error
    got = vocabulary_hash(pieces)
    if got != expected:
        raise ModelError(
            f"{path} has the vocabulary {got}, its manifest has {expected}: fetch or "
            "export the drafter again"
        )
    return pieces


def _difference(target: Sequence[bytes], drafter: Sequence[bytes]) -> str:
    ours, theirs = target[: real_size(target)], drafter[: real_size(drafter)]
    for token, (mine, its) in enumerate(zip(ours, theirs, strict=False)):
        if mine != its:
            return (
                f"token {token} is {_shown(mine)} in the target and {_shown(its)} in "
                "the drafter"
            )
    return f"the target has {len(ours)} tokens and the drafter {len(theirs)}"


def _shown(piece: bytes) -> str:
    return repr(piece.decode(errors="backslashreplace"))
