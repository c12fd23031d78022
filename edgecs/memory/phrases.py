"""The phrases of a target: what it says again and again, in any conversation.

They are looked up in answers that it has written for this once, as in the statistical
store of Hierarchy Drafting (arXiv 2502.05609, section 3), and have nothing of the user.
A model's answers are one segment in a file of its own, apart from the user's texts.

The answers are kept whole. Their frequent n-grams alone take a tenth of the space and
give nearly as many right tokens, but no speed: in a whole text a match is longer, and
its number of occurrences tells how likely it is (`edgecs_bench.memory --frequent`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from edgecs.core.context import Tokens
from edgecs.core.reading import plain, reason
from edgecs.drafters.corpus import Match
from edgecs.errors import ConfigError
from edgecs.memory.lookup import looked_up
from edgecs.memory.model_files import Identity, make_folder, path_of
from edgecs.memory.segment import NotASegment, Segment, encoded, opened, written

# chosen: a file of 8 MiB. Sorting takes half a minute at most.
MOST_TOKENS = 1 << 20  # of all answers of a model


class Phrases:
    """The phrases of one target, as a `Corpus`."""

    def __init__(self, segment: Segment, vocab_size: int) -> None:
        self._segments, self._vocab_size = (segment,), vocab_size

    @property
    def tokens(self) -> int:
        """Number of tokens that can be found."""
        return sum(one.words - len(one.ids) for one in self._segments)

    def match(self, end: Sequence[int], k: int) -> Match | None:
        """The longest match of the end of a text, see `Corpus`."""
        hit = looked_up(self._segments, end, k, self._vocab_size)
        return hit and hit.match


def write_phrases(
    folder: Path, model: Identity, answers: Iterable[Sequence[int]]
) -> Phrases:
    """Replaces the phrases of a model by those in its answers, as tokens.

    folder: of the memory. Answers after MOST_TOKENS, and repeated ones, are left out.
    The file is the old one or the new one, whenever the process is killed. Raises
    ConfigError.
    """
    documents, size = list[tuple[int, Tokens]](), 0
    for answer in dict.fromkeys(map(tuple, answers)):
        size += len(answer) + 1
        if size > MOST_TOKENS:
            break
        documents.append((len(documents) + 1, np.array(answer, dtype=np.int32)))
    path = path_of(folder, "phrases", model)
    store, tokenizer = bytes.fromhex(model.fingerprint), bytes.fromhex(model.tokenizer)
    data = encoded(documents, store=store, tokenizer=tokenizer)
    try:
        make_folder(path)
        return Phrases(written(path, data), model.vocab_size)
    except (OSError, NotASegment) as error:
        raise ConfigError(
            f"{plain(str(path))} cannot be written ({reason(error)}): make room on the "
            "disk, check the rights of the folder, or give another (--memory DIR)"
        ) from error


def open_phrases(folder: Path, model: Identity) -> Phrases | None:
    """The phrases of a model; None: there are none.

    Raises ConfigError for a file that is damaged, of another version, or of another
    model.
    """
    path = path_of(folder, "phrases", model)
    try:
        segment = opened(path)
        owner = segment.store.hex(), segment.tokenizer.hex()
        if owner != (model.fingerprint, model.tokenizer):
            raise NotASegment("it is of another model")
    except FileNotFoundError:
        return None
    except (OSError, NotASegment) as error:
        raise ConfigError(
            f"the phrases in {plain(str(path))} cannot be used ({reason(error)}): "
            "`edgecs memory build` writes them again"
        ) from error
    return Phrases(segment, model.vocab_size)
