"""Scratch cells of models with states and windows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgecs.calibrate.probe import QUICK, Scratch, bits
from edgecs.core.context import Context
from edgecs.core.draft import Draft, score_one
from edgecs.engines.llama.scratch_kv import Layout, repeated
from edgecs.engines.load_options import LoadOptions
from edgecs.runtime.loader import load
from tests.engines.calls import watched
from tests.families import FAMILIES

OPTIONS = LoadOptions(n_ctx=1024, n_batch=64, threads=1, n_gpu_layers=0)
TOKENS = [int(i) for i in np.random.default_rng(1).integers(0, 256, 700)]


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_a_long_context_is_not_read(name: str, full: bool, tmp_path: Path):
    path = FAMILIES[name](tmp_path / "model.gguf")
    options = LoadOptions(**{**vars(OPTIONS), "swa_full": full})
    with load(path, options) as loaded:
        target = loaded.target
        calls = watched(target)
        for depth in (40, 300, 600):  # the window has 64 cells, and their buffer 256
            assert target.pretend(Context(TOKENS[:depth]))
            assert [tokens for tokens, _ in calls] == [32]
            calls.clear()
            context = Context(TOKENS[: depth + 1])
            for size in (3, 1):
                rows = score_one(target, context, Draft.chain(TOKENS[:size], "x"))
                assert rows.fed == 1 + size
                assert np.isfinite(rows.logits).all()
            calls.clear()


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_copies_of_as_many_cells_give_the_same_rows(name: str, tmp_path: Path):
    path = FAMILIES[name](tmp_path / "model.gguf")
    with load(path, OPTIONS) as loaded:
        target, context = loaded.target, Context(TOKENS[:32])
        score_one(target, context)
        whole = target._sequences[0].state()
        assert repeated(whole, 32, target._layout()) == whole
        context.append([7])
        expected = score_one(target, context).logits.copy()
        assert target._sequences[0].put(whole, 32)
        target._sequences[0].cache.reset_to(TOKENS[:32])
        target._sequences[0].rollback.save(32)
        found = score_one(target, Context(context.tokens)).logits
        assert np.abs(found - expected).max() < 1e-3


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_probes_compute_only_their_own_tokens(name: str, tmp_path: Path):
    path = FAMILIES[name](tmp_path / "model.gguf")
    with load(path, OPTIONS) as loaded:
        for depth in (24, 300, 700):
            with Scratch(loaded.target, depth) as cells:
                for after, width in ((0, 1), (1, 1), (0, 2), (0, 8), (0, 8), (0, 1)):
                    cells.rows(after, width)
                assert not cells.others
        found, _ = bits(loaded.target, 100, QUICK)
        assert found.same | found.other == set(QUICK)


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_another_layout_is_refused(name: str, tmp_path: Path):
    path = FAMILIES[name](tmp_path / "model.gguf")
    with load(path, OPTIONS) as loaded:
        score_one(loaded.target, Context(TOKENS[:32]))
        whole = loaded.target._sequences[0].state()
        right = loaded.target._layout()
    layouts = {Layout(), Layout((0, 64)), Layout(()), Layout((0,), True, True)}
    for layout in layouts - {right}:
        with pytest.raises(ValueError, match="state"):
            repeated(whole, 64, layout)
