"""Training teaches, resumes, and keeps what it has."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edgecs.errors import Cancelled, DistillError
from edgecs_convert.distill.samples import Sample
from edgecs_convert.distill.texts import choose_vocabulary, windows
from tests.convert.samples import needs_torch, quiet, sample


def repeating(tokens: int) -> tuple[list[Sample], Any]:
    """Texts in which a token is always followed by the same one, with states."""
    random = np.random.default_rng(0)
    follows, states = random.permutation(tokens), random.standard_normal((tokens, 64))
    every = []
    for number in range(tokens):
        text = [number]
        for _ in range(30):
            text.append(int(follows[text[-1]]))
        said = np.array(text, dtype=np.int32)
        ids = said[1:, None].repeat(2, 1)
        logits = np.tile(np.array([9.0, 0.0], dtype=np.float16), (30, 1))
        seen = states[said[1:-1]].astype(np.float16)
        every.append(Sample(number, 0.0, said, 1, ids, logits, seen))
    return every, follows


@needs_torch
@pytest.mark.parametrize("loss", ["fkl", "tvd", "jsd"])
def test_training_teaches(tmp_path: Path, loss: Any):
    """A head must not just copy what it is given; seen in the exported graph."""
    from edgecs_convert.distill.export import About, export_head
    from edgecs_convert.distill.head import Head
    from edgecs_convert.distill.measure import opened_onnx, worth
    from edgecs_convert.distill.recipe import Recipe
    from edgecs_convert.distill.shape import HeadShape
    from edgecs_convert.distill.train import Trainer

    every, _ = repeating(40)
    vocabulary = choose_vocabulary(every, 40, 40)
    head = Head(HeadShape(64, 40, 4, 2, 64))

    def right(name: str) -> list[float]:
        pieces = [bytes([65 + i]) for i in range(40)]
        about = About("x", "x.gguf", "MIT", pieces, 48, int8=False)
        folder = export_head(tmp_path / name, head, vocabulary.ids, about)
        with opened_onnx(folder, 64, 40, threading.Event()) as opened:
            return worth(opened, every, threading.Event()).shares

    recipe = Recipe(epochs=12, rate=3e-3, warm=2, texts=8, length=48)
    if loss != "fkl":  # TVD teaches little from far away
        recipe = replace(recipe, loss=loss, epochs=40)
    before = right("before")
    parts = windows(every, recipe.length, recipe.before)
    trainer = Trainer(head, parts, vocabulary, recipe, tmp_path / "c.pt", on="cpu")
    trainer.run(threading.Event(), quiet)
    after = right("after")
    assert before[0] < 0.3
    assert after[2] > 0.95


@needs_torch
@given(
    arrays.arrays(np.float32, (3, 7), elements=st.floats(-8, 8, width=32)),
    arrays.arrays(np.float32, (3, 7), elements=st.floats(-8, 8, width=32)),
)
def test_losses_are_those_of_whole_laws(mine: np.ndarray, theirs: np.ndarray):
    """With every token among the best, each loss is what its name says."""
    import torch

    from edgecs_convert.distill.losses import divergence

    order = np.argsort(-theirs, axis=1)
    rows = torch.from_numpy(order)
    logits = torch.from_numpy(np.take_along_axis(theirs, order, axis=1))
    q, p = (np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (mine, theirs))
    m = (p + q) / 2
    wanted = {
        "fkl": -(p * np.log(q)).sum(1),
        "tvd": np.abs(p - q).sum(1) / 2,
        "jsd": ((p * np.log(p / m)).sum(1) + (q * np.log(q / m)).sum(1)) / 2,
    }
    for kind, value in wanted.items():
        got = divergence(kind, torch.from_numpy(mine), rows, logits)  # type: ignore[arg-type]
        assert float(got) == pytest.approx(float(value.mean()), abs=1e-4), kind


@needs_torch
def test_what_a_drafter_lacks_costs_it_tvd_and_no_more():
    """Unknown tokens share row 0 with a known one and must not count as that."""
    import torch

    from edgecs_convert.distill.losses import divergence

    said = torch.tensor([[4.0, 1.0, 0.0]])
    rows = torch.tensor([[1, 0, 0]])
    lacking = torch.tensor([[2.0, -torch.inf, -torch.inf]])
    alone = divergence("tvd", said, rows[:, :1], lacking[:, :1])
    for kind in ("fkl", "tvd", "jsd"):
        both = [
            divergence(kind, said, rows[:, :n], lacking[:, :n])  # type: ignore[arg-type]
            for n in (1, 3)
        ]
        assert float(both[0]) == pytest.approx(float(both[1]), abs=1e-6), kind
    share = float(said.softmax(-1)[0, 1])
    assert float(alone) == pytest.approx(1 - share, abs=1e-6)


def trainer_of(path: Path, seed: int = 1, rate: float = 1e-3) -> Any:
    from edgecs_convert.distill.head import Head
    from edgecs_convert.distill.recipe import Recipe
    from edgecs_convert.distill.shape import HeadShape
    from edgecs_convert.distill.train import Trainer

    every = [sample(i, 6, 20, width=64) for i in range(20)]
    vocabulary = choose_vocabulary(every, 40, 50)
    recipe = Recipe(epochs=2, rate=rate, texts=4, length=40, seed=seed)
    head = Head(HeadShape(64, 40, 4, 2, 32), seed=1)
    parts = windows(every, recipe.length, recipe.before)
    return Trainer(head, parts, vocabulary, recipe, path, on="cpu")


@needs_torch
def test_an_interrupted_training_ends_with_the_same_weights(tmp_path: Path):
    whole = trainer_of(tmp_path / "whole.pt")
    whole.run(threading.Event(), quiet)

    path, stop = tmp_path / "parts.pt", threading.Event()
    part = trainer_of(path)
    step = part._step

    def stopping(batch: Any) -> float:
        if part.done == 6:
            stop.set()
        return step(batch)

    part._step = stopping
    with pytest.raises(Cancelled, match="the next run resumes"):
        part.run(stop, quiet)
    rest = trainer_of(path)
    assert 0 < rest.done < rest.total
    rest.run(threading.Event(), quiet)
    assert rest.done == whole.done == whole.total
    for name, weight in whole.student.arrays().items():
        assert np.array_equal(weight, rest.student.arrays()[name]), name


@needs_torch
def test_a_loss_that_is_no_number_ends_training_and_keeps_the_checkpoint(
    tmp_path: Path,
):
    path = tmp_path / "c.pt"
    trainer_of(path).run(threading.Event(), quiet)
    kept = path.read_bytes()
    bad = trainer_of(tmp_path / "other.pt")
    bad.student.norm.data[0] = float("nan")
    with pytest.raises(DistillError, match=r"the loss is nan .*learning rate"):
        bad.run(threading.Event(), quiet)
    assert path.read_bytes() == kept


@needs_torch
@pytest.mark.parametrize("kind", [OSError, RuntimeError])
def test_a_full_disk_keeps_the_checkpoint_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
):
    import torch

    path = tmp_path / "c.pt"
    trainer_of(path).run(threading.Event(), quiet)
    kept = path.read_bytes()

    def full(state: object, to: IO[bytes]) -> None:
        to.write(b"half")
        raise kind("no space left on device\nand much more")

    monkeypatch.setattr(torch, "save", full)
    more = trainer_of(tmp_path / "c.pt")
    more.total += 3
    with pytest.raises(DistillError, match=r"cannot be written \(no space .*make room"):
        more.run(threading.Event(), quiet)
    assert path.read_bytes() == kept
    assert [p.name for p in tmp_path.iterdir()] == ["c.pt"]


@needs_torch
def test_a_training_that_is_done_leaves_no_part_of_a_checkpoint(tmp_path: Path):
    """Killed while it wrote the last one again, it has nothing more to write."""
    path = tmp_path / "c.pt"
    trainer_of(path).run(threading.Event(), quiet)
    (tmp_path / ".c.pt.99999999-00000000.part").touch()
    trainer_of(path).run(threading.Event(), quiet)
    assert [p.name for p in tmp_path.iterdir()] == ["c.pt"]


@needs_torch
def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path):
    path = tmp_path / "c.pt"
    trainer_of(path).run(threading.Event(), quiet)
    with pytest.raises(DistillError, match="another recipe"):
        trainer_of(path, rate=2e-3)
    path.write_bytes(b"nonsense")
    with pytest.raises(DistillError, match="cannot be read"):
        trainer_of(path)
