"""The default model behind a long prompt, drafting for itself with an excerpt of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgecs.core.context import Tokens
from edgecs.decoding import excerpt_reader
from edgecs.decoding.cascade import stack
from edgecs.decoding.kmatrix import KMatrix
from edgecs.decoding.retrieval import excerpt
from edgecs.drafters.maxgram import MaxGram
from edgecs.engines.load_options import LoadOptions
from edgecs.runtime.loader import Loaded, load_drafter
from edgecs.text.chat_template import ChatTemplate

FACTS = {
    "Who led the expedition to Kerguelen?": "The expedition to Kerguelen was led by "
    "Captain Marguerite Duval in 1911.",
    "Who founded the library of Orsova?": "The library of Orsova was founded by "
    "Professor Ifeoma Okonkwo in 1874.",
    "Who built the bridge over the Drava?": "The bridge over the Drava was built by "
    "the engineer Anneli Lindqvist in 1932.",
}
FILLER = (
    "The harbour was quiet in the morning, and the fishermen mended their nets. In the "
    "afternoon a wind came up from the west, and the boats stayed on the beach. "
)


def prompt(loaded: Loaded, asked: str) -> Tokens:
    """A long text with a sentence in it, and the question about that."""
    text = f"{FILLER * 6}{FACTS[asked]} {FILLER * 14}\n\n{asked}"
    template = ChatTemplate(loaded.model.vocabulary)
    return template.encode([{"role": "user", "content": text}])


def last_tokens(tokens: Tokens, size: int, asked: int | None = None) -> Tokens:
    """An excerpt without retrieval."""
    return tokens[-size:].copy()


@pytest.mark.model
def test_retrieval_finds_what_is_asked(
    smollm: Loaded, model_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The model agrees with itself where its excerpt has the answer."""
    short = LoadOptions(n_ctx=512)
    matrix = KMatrix.parse("3,0;0,0")
    ends = smollm.model.vocabulary.ends
    accepted, tested = [0, 0], [0, 0]
    with load_drafter(model_path, smollm, short) as drafter:
        for asked in FACTS:
            ids, said = prompt(smollm, asked), list[list[int]]()
            assert 512 < ids.size < 1000
            with smollm.session([], 0) as session:
                plain = [t.id for t in session.generate(ids, max_tokens=24)]
            for i, choice in enumerate((excerpt, last_tokens)):
                monkeypatch.setattr(excerpt_reader, "excerpt", choice)
                drafter.model.reset()
                chain = stack([drafter.named], MaxGram(), matrix, ends=ends)
                with smollm.session(chain, matrix.counts(0)) as session:
                    tokens = session.generate(ids, max_tokens=24)
                    said.append([token.id for token in tokens])
                    accepted[i] += session.stats.accepted
                    tested[i] += session.stats.tested
            assert said == [plain, plain]
    assert accepted[0] > 0.8 * tested[0]
    assert accepted[1] < 0.6 * tested[1]
