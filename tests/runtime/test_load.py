"""Drafters from files: rows in the target's ids, one call where a target takes two."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest

from edgecs.core.context import Context
from edgecs.core.draft import Draft, score_one
from edgecs.engines.llama.language_model import LlamaLM
from edgecs.engines.llama.model import LlamaModel
from edgecs.engines.load_options import LoadOptions
from edgecs.runtime.loader import Loaded, load, load_drafter
from edgecs.testing.fakes import write_random_gguf
from tests.engines.calls import watched

OPTIONS = LoadOptions(n_ctx=256, n_batch=64, threads=1, n_gpu_layers=0)
TEXT = list(b"hello, hello, hello")


@pytest.fixture
def model(tiny_gguf: Path):
    model = LlamaModel(tiny_gguf, OPTIONS, threading.Event())
    yield model
    model.close()


def scorer(model: LlamaModel, drafts_for: int | None) -> LlamaLM:
    return LlamaLM(model, OPTIONS, threading.Event(), drafts_for=drafts_for)


@pytest.mark.parametrize("size", [200, 272, 300])
def test_a_drafters_rows_are_as_wide_as_the_targets(model: LlamaModel, size: int):
    target, drafter = scorer(model, None), scorer(model, size)
    own = target.vocab_size
    context, draft = Context(TEXT), Draft.chain([8, 9], "x")
    for _ in range(3):
        theirs = score_one(target, context, draft).logits
        rows = score_one(drafter, context, draft).logits
        assert rows.shape == (3, size)
        both = min(size, own)
        np.testing.assert_allclose(rows[:, :both], theirs[:, :both], atol=1e-3)
        assert np.all(rows[:, own:] == -np.inf)
        context.append([8, 7])
    target.close()
    drafter.close()


def test_few_context_tokens_and_a_draft_are_one_call(model: LlamaModel):
    drafter = scorer(model, 272)
    calls = watched(drafter)
    context = Context(TEXT)
    score_one(drafter, context)
    context.append([1, 2, 3])
    rows = np.array(score_one(drafter, context, Draft.chain([8, 9], "x")).logits)
    assert calls == [(len(TEXT), 1), (5, 3)]
    fresh = scorer(model, None)
    alone = score_one(fresh, context, Draft.chain([8, 9], "x")).logits
    np.testing.assert_allclose(rows, alone, atol=1e-3)
    context.append(range(80))  # with the draft it is more than a call takes
    score_one(drafter, context, Draft.chain([8], "x"))
    assert calls[2:] == [(17, 1), (64, 2)]
    drafter.close()
    fresh.close()


def test_a_drafter_goes_as_far_as_it_was_trained(tiny: Loaded, tmp_path: Path):
    small = write_random_gguf(tmp_path / "small.gguf", n_ctx=128)
    with load_drafter(small, tiny) as drafter:
        assert drafter.model.n_ctx == 128 < tiny.target.n_ctx
        assert drafter.parameters == tiny.model.parameters
        assert drafter.name == "small"
        assert "CPU threads" in drafter.about


def test_padding_is_no_difference(tiny_gguf: Path, tmp_path: Path):
    padded = write_random_gguf(tmp_path / "padded.gguf", padding=20)
    for target, other in ((tiny_gguf, padded), (padded, tiny_gguf)):
        with load(target, OPTIONS) as loaded, load_drafter(other, loaded) as drafter:
            rows = score_one(drafter.model, Context(TEXT)).logits
            assert rows.shape == (1, loaded.target.vocab_size)


def test_a_key_has_the_options_as_they_were_used(tiny_gguf: Path):
    with load(tiny_gguf, LoadOptions(n_ctx=256)) as loaded:
        key = loaded.key()
    used = key.options
    assert used.threads == loaded.target.threads > 0
    assert (used.n_gpu_layers, used.n_ctx) == (0, 0)
    assert key.kernels.partition("-")[0] == used.kernels == loaded.options.kernels
    with load(tiny_gguf, LoadOptions(n_ctx=512, max_draft=3)) as other:
        assert other.key() == key
    assert json.loads(json.dumps(key.named())) == key.named()


def test_more_threads_than_processors_are_warned_of(
    tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("edgecs.runtime.opening.usable_processors", lambda: 2)
    monkeypatch.setattr("edgecs.runtime.opening.usable_cores", lambda: 1)
    for threads, warned in ((0, False), (2, False), (3, True)):
        with load(tiny_gguf, LoadOptions(n_ctx=64, threads=threads)) as loaded:
            found = [text for text in loaded.warnings if "processors" in text]
            assert bool(found) == warned
    assert found == ["3 threads on 2 processors wait for each other: -t 1 is faster"]
