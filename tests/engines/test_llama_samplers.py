"""Every step of the chain against llama.cpp's own sampler, on rows of a real model."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import llama_cpp as lib
import numpy as np
import pytest
from numpy.typing import NDArray

from edgecs.core.context import Context
from edgecs.core.draft import Draft, score_one
from edgecs.runtime.loader import Loaded
from edgecs.sampling import penalties
from edgecs.sampling.chain import SamplerChain
from edgecs.sampling.settings import Sampling

pytestmark = pytest.mark.model

ROWS = 200
TEXT = (
    "def area(shape: Shape) -> float:\n    if shape.kind == 'circle':\n        return "
    "3.14 * shape.r ** 2\n    if shape.kind == 'square':\n        return shape.a ** 2\n"
    "\nThe quick brown fox jumps over the lazy dog. The quick brown fox: it jumps over "
    'the lazy cat, and says "never again". The lazy dog says: "The quick brown fox '
    'jumps over me". One, two, three, four; one, two, three, five; one, two, three! '
) * 2


class Sampler:
    """A chain of llama.cpp's samplers, applied to a row with a history of tokens."""

    def __init__(self, *samplers) -> None:
        params = lib.llama_sampler_chain_default_params()
        self._chain = lib.llama_sampler_chain_init(params)
        for sampler in samplers:
            lib.llama_sampler_chain_add(self._chain, sampler)

    def law(
        self, row: NDArray[np.float32], tokens: NDArray[np.int32]
    ) -> dict[int, float]:
        """Survivors and their probabilities, worked out from their logits."""
        lib.llama_sampler_reset(self._chain)
        for token in tokens.tolist():
            lib.llama_sampler_accept(self._chain, token)
        data = (lib.llama_token_data * row.size)()
        view = np.ctypeslib.as_array(data)
        view["id"], view["logit"] = np.arange(row.size), row
        array = lib.llama_token_data_array(data, row.size, -1, False)
        lib.llama_sampler_apply(self._chain, ctypes.byref(array))
        left = np.ctypeslib.as_array(array.data, (array.size,))
        left = left[left["logit"] > -np.inf]
        weights = np.exp(left["logit"].astype(float) - left["logit"].max())
        return dict(zip(left["id"].tolist(), weights / weights.sum(), strict=True))

    def close(self) -> None:
        lib.llama_sampler_free(self._chain)


@pytest.fixture(scope="module")
def tokens(smollm: Loaded) -> NDArray[np.int32]:
    ids = smollm.model.vocabulary.encode(TEXT)[: ROWS + 20]
    assert ids.size == ROWS + 20
    return ids


@pytest.fixture(scope="module")
def rows(smollm: Loaded, tokens: NDArray[np.int32]) -> NDArray[np.float32]:
    """Row i follows the first 20 + i tokens of the text."""
    parts = []
    smollm.target.reset()
    for start in range(20, ROWS + 20, 50):
        draft = Draft.chain(tokens[start : start + 49], "text")
        scored = score_one(smollm.target, Context(tokens[:start]), draft)
        parts.append(np.array(scored.logits))
    return np.concatenate(parts)


BREAKERS = ("\n", ":", '"', "*", "fox jumps")


def dry(loaded: Loaded, values: Sampling):
    texts = (ctypes.c_char_p * len(BREAKERS))(*(text.encode() for text in BREAKERS))
    return lib.llama_sampler_init_dry(
        loaded.model.vocabulary._vocab,
        values.dry_multiplier,
        values.dry_base,
        values.dry_allowed_length,
        values.dry_last_n,
        texts,
        len(BREAKERS),
    )


Step = tuple[dict[str, float], Callable[[Loaded, Sampling], object]]
STEPS: dict[str, Step] = {
    "bias": (
        {"logit_bias": ((28, 3.5), (260, -np.inf), (18, -2.0))},
        lambda m, s: lib.llama_sampler_init_logit_bias(
            m.target.vocab_size,
            len(s.logit_bias),
            (lib.llama_logit_bias * len(s.logit_bias))(*s.logit_bias),
        ),
    ),
    "penalties": (
        {
            "repeat_penalty": 1.3,
            "frequency_penalty": 0.2,
            "presence_penalty": 0.1,
            "repeat_last_n": 30,
        },
        lambda m, s: lib.llama_sampler_init_penalties(
            m.target.vocab_size,
            s.repeat_last_n,
            s.repeat_penalty,
            s.frequency_penalty,
            s.presence_penalty,
        ),
    ),
    "dry": ({"dry_multiplier": 0.8, "dry_allowed_length": 2, "dry_last_n": 512}, dry),
    "top-n-sigma": (
        {"top_n_sigma": 1.0},
        lambda m, s: lib.llama_sampler_init_top_n_sigma(s.top_n_sigma),
    ),
    "top-k": ({"top_k": 40}, lambda m, s: lib.llama_sampler_init_top_k(s.top_k)),
    "typical": (
        {"typical_p": 0.7},
        lambda m, s: lib.llama_sampler_init_typical(s.typical_p, 0),
    ),
    "top-p": ({"top_p": 0.9}, lambda m, s: lib.llama_sampler_init_top_p(s.top_p, 0)),
    "min-p": ({"min_p": 0.05}, lambda m, s: lib.llama_sampler_init_min_p(s.min_p, 0)),
    "xtc": (
        {"xtc_probability": 1.0, "xtc_threshold": 0.1},
        lambda m, s: lib.llama_sampler_init_xtc(
            s.xtc_probability, s.xtc_threshold, 0, 1
        ),
    ),
    "temperature": (
        {"temperature": 0.7},
        lambda m, s: lib.llama_sampler_init_temp(s.temperature),
    ),
}


def compare(
    loaded: Loaded,
    rows: NDArray[np.float32],
    tokens: NDArray[np.int32],
    names: list[str],
) -> int:
    """Asserts equal laws on every row; returns on how many the steps did something."""
    values = {k: v for name in names for k, v in STEPS[name][0].items()}
    sampling = Sampling(**{"temperature": 1.0, **values, "dry_breakers": BREAKERS})
    vocabulary = loaded.model.vocabulary
    breakers = penalties.sequence_breakers(
        BREAKERS,
        vocabulary.pieces(),
        lambda text: vocabulary.encode(text, document=False),
    )
    chain = SamplerChain(sampling, breakers, None, 0)
    theirs = Sampler(*(STEPS[name][1](loaded, sampling) for name in names))
    changed = 0
    for i, row in enumerate(rows):
        seen = tokens[: 20 + i]
        law, wanted = chain.law(row, seen), theirs.law(row, seen)
        ids = np.array(list(wanted))
        assert np.array_equal(np.flatnonzero(law), np.sort(ids)), (names, i)
        np.testing.assert_allclose(
            law[ids], np.array(list(wanted.values())), atol=1e-6, rtol=0
        )
        plain = np.exp(row - row.max(), dtype=float)
        changed += bool(np.abs(plain / plain.sum() - law).max() > 1e-6)
    theirs.close()
    return changed


@pytest.mark.parametrize("name", STEPS)
def test_a_step_is_that_of_llama_cpp(name: str, smollm: Loaded, rows, tokens):
    # A step that never acts would compare nothing.
    assert compare(smollm, rows, tokens, [name]) > 20


def test_the_chain_is_that_of_llama_cpp(smollm: Loaded, rows, tokens):
    names = [name for name in STEPS if name not in ("top-n-sigma", "xtc")]
    assert compare(smollm, rows, tokens, names) == ROWS
    # Behind top-n-sigma llama.cpp's typical sampler works out 0 log 0.
    others = [name for name in STEPS if name != "typical"]
    assert compare(smollm, rows, tokens, others) == ROWS
