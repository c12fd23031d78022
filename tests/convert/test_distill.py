"""Making a drafter: every stage, interrupted and resumed, and all that can go wrong."""

from __future__ import annotations

import importlib.util
import itertools
import json
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edgecs.errors import Cancelled, ConfigError, DistillError, ModelError
from edgecs.hub.drafter_manifest import parse_drafter, read_drafter
from edgecs.runtime.loader import Loaded
from edgecs.testing.fakes import write_random_gguf
from edgecs_convert.distill import samples as store
from edgecs_convert.distill.data import Wanted, write_samples
from edgecs_convert.distill.samples import (
    Sample,
    best,
    numbers,
    read_samples,
    shards,
    write_shard,
)
from edgecs_convert.distill.target import TargetFile
from edgecs_convert.distill.texts import (
    Vocabulary,
    batch,
    choose_vocabulary,
    windows,
)
from edgecs_convert.distill.topics import half_of, questions
from tests.cli.test_cli import one_line
from tests.conftest import Outcome

needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None,
    reason="the extra 'distill' is not installed",
)
needs_export = pytest.mark.skipif(
    importlib.util.find_spec("optimum") is None,
    reason="the extra 'convert' is not installed",
)
Edgecs = Callable[..., Outcome]


def quiet(text: str) -> None:
    """Nobody is told."""


def sample(number: int, start: int, size: int, *, width: int = 4, k: int = 3) -> Sample:
    random = np.random.default_rng(number)
    logits = -np.sort(-random.standard_normal((size, k)), axis=1)
    return Sample(
        number,
        0.0,
        random.integers(0, 50, start + size).astype(np.int32),
        start,
        random.integers(0, 50, (size, k)).astype(np.int32),
        logits.astype(np.float16),
        random.standard_normal((size - 1, width)).astype(np.float16),
    )


def same(one: Sample, other: Sample) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


# What is asked.


def test_the_halves_share_no_question():
    seen, unseen = (
        {q.text for q in itertools.islice(questions(half, 1), 3000)}
        for half in ("seen", "unseen")
    )
    assert len(seen) > 1000
    assert not seen & unseen


def test_questions_depend_on_the_seed_alone():
    def few(seed: int) -> list[str]:
        return [q.text for q in itertools.islice(questions("seen", seed), 50)]

    assert few(1) == few(1) != few(2)
    assert half_of("coffee") == half_of("coffee")


# What is answered.


@given(
    arrays.arrays(
        np.float32,
        st.tuples(st.integers(1, 3), st.integers(1, 400)),
        elements=st.floats(-10, 10, width=16),
    ),
    st.integers(1, 6),
)
def test_the_best_of_a_row_are_its_largest(rows: np.ndarray, count: int):
    ids, values = best(rows, count)
    count = min(count, rows.shape[1])
    assert np.array_equal(values, -np.sort(-rows, axis=1)[:, :count])
    assert np.array_equal(np.take_along_axis(rows, ids, axis=1), values)
    assert all(len(set(row)) == count for row in ids.tolist())


# How it is kept.


@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(2, 9)), min_size=1, max_size=6),
    st.integers(1, 3),
)
def test_samples_come_back_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[tuple[int, int]], each: int
):
    folder = tmp_path_factory.mktemp("shards")
    every = [sample(i, *size) for i, size in enumerate(sizes)]
    for start in range(0, len(every), each):
        write_shard(folder, every[start : start + each])
    read = list(read_samples(folder))
    assert len(read) == len(every)
    assert all(same(*pair) for pair in zip(every, read, strict=True))
    assert numbers(folder) == (set(range(len(every))), sum(size for _, size in sizes))


def test_a_full_disk_is_said_and_leaves_no_half_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write_shard(tmp_path, [sample(0, 2, 3)])

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store.np, "savez", full)
    with pytest.raises(DistillError, match=r"No space left.*make room") as caught:
        write_shard(tmp_path, [sample(1, 2, 3)])
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["00000.npz"]


def test_a_damaged_shard_is_named(tmp_path: Path):
    path = write_shard(tmp_path, [sample(0, 2, 3)])
    path.write_bytes(path.read_bytes()[:100])
    for read in (numbers, lambda folder: list(read_samples(folder))):
        with pytest.raises(DistillError, match=r"00000\.npz cannot be read"):
            read(tmp_path)


def wanted(tokens: int, **more: Any) -> Wanted:
    return Wanted(tokens, most=16, parallel=4, **more)


def write(tiny: Loaded, folder: Path, plan: Wanted) -> int:
    return write_samples(tiny.model, folder, plan, threading.Event(), quiet, threads=1)


def test_writing_goes_on_where_it_stopped(tiny: Loaded, tmp_path: Path):
    write(tiny, tmp_path, wanted(300))
    first = [path.read_bytes() for path in shards(tmp_path)]
    done, tokens = numbers(tmp_path)
    assert write(tiny, tmp_path, wanted(300)) == tokens  # enough is enough
    more = write(tiny, tmp_path, wanted(tokens + 1))
    after, _ = numbers(tmp_path)
    assert more > tokens
    assert after > done
    assert [path.read_bytes() for path in shards(tmp_path)][: len(first)] == first
    every = [s.number for s in read_samples(tmp_path)]
    assert len(every) == len(set(every))


def test_an_interrupted_writing_keeps_what_was_said(tiny: Loaded, tmp_path: Path):
    stop = threading.Event()

    def tell(text: str) -> None:
        assert "min left" in text
        stop.set()

    plan = wanted(100_000)
    with pytest.raises(Cancelled):
        write_samples(tiny.model, tmp_path, plan, stop, tell, threads=1)
    assert numbers(tmp_path)[1] > 0


def test_samples_of_two_kinds_do_not_mix(tiny: Loaded, tmp_path: Path):
    write(tiny, tmp_path, wanted(50))
    with pytest.raises(ConfigError, match="samples with seed 1, not 2"):
        write(tiny, tmp_path, wanted(50, seed=2))


def test_prompts_of_ones_own(tiny: Loaded, tmp_path: Path):
    file = tmp_path / "prompts.jsonl"
    file.write_text('plain text\n{"prompt": "from JSON"}\n{"turns": ["first", "2"]}\n')
    write(tiny, tmp_path / "data", wanted(200, prompts=file))
    decode = tiny.model.vocabulary.piece
    asked = {
        b"".join(decode(t) for t in s.tokens[: s.start].tolist())
        for s in read_samples(tmp_path / "data")
    }
    texts = b" ".join(asked).decode()
    assert all(part in texts for part in ("plain text", "from JSON", "first"))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "there are no prompts in"),
        (b"\xff\xfe", "cannot be read as prompts"),
        (b"x" * 3000, "no prompt in .* leaves room for 16 tokens"),
    ],
)
def test_prompts_that_cannot_be_used(
    tiny: Loaded, tmp_path: Path, content: bytes, says: str
):
    file = tmp_path / "prompts.txt"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=says):
        write(tiny, tmp_path / "data", wanted(200, prompts=file))


# What is learnt from.


def test_the_vocabulary_is_what_is_said_most(tmp_path: Path):
    every = [sample(i, 5, 30) for i in range(8)]
    said = np.concatenate([s.tokens[s.start :] for s in every])
    counts = np.bincount(said, minlength=60)
    vocabulary = choose_vocabulary(every, 12, 60, always=[59])
    assert 59 in vocabulary.ids
    others = np.setdiff1d(np.arange(60), vocabulary.ids)
    assert counts[others].max() <= counts[np.setdiff1d(vocabulary.ids, [59])].min()
    assert vocabulary.coverage(every) == pytest.approx(
        counts[vocabulary.ids].sum() / said.size
    )
    rows = vocabulary.rows_of(np.arange(60, dtype=np.int32))
    assert (vocabulary.ids[rows[vocabulary.ids]] == vocabulary.ids).all()
    assert (rows[others] == vocabulary.rows).all()


@given(st.integers(1, 60), st.integers(2, 90), st.integers(34, 60), st.integers(0, 32))
def test_every_token_of_an_answer_is_learnt_once(
    start: int, size: int, length: int, before: int
):
    s = sample(1, start, size)
    vocabulary = Vocabulary(np.arange(40, dtype=np.int32), 50)
    learnt = []
    for window in windows([s], length, before):
        assert window.first - window.begin == min(before, window.first)
        made = batch([window], vocabulary, length)
        for i in range(window.end - window.begin):
            at = window.begin + i
            assert made.tokens[0, i] == vocabulary.rows_of(s.tokens[at : at + 1])[0]
            knows = at - 1 >= start
            chose = s.states[at - 1 - start] if knows else np.zeros(4)
            assert np.array_equal(made.states[0, i], chose)
            if at >= window.first:
                learnt.append(at)
                row = at + 1 - start
                known = s.top_ids[row] < 40
                assert made.counts[0, i] == known.any()
                logits = np.where(known, s.top_logits[row], -np.inf)
                assert np.array_equal(made.top_logits[0, i], logits)
                assert np.array_equal(made.next_states[0, i], s.states[at - start])
            else:
                assert not made.counts[0, i]
    assert learnt == list(range(start, start + size - 1))


# What comes out.


def make(edgecs: Edgecs, model: Path, folder: Path, *options: object) -> Outcome:
    return edgecs(
        "distill",
        *("-m", model, "-c", 256, "--tokens", 1000, "--answer", 16, "--parallel", 8),
        *("--rows", 120, "--work", folder / "work", "-o", folder / "made", *options),
    )


@needs_torch
@pytest.mark.parametrize(("seconds", "drafts"), [(0.0, 0), (2e-3, 10)])
def test_figures_can_be_read_back_where_nothing_was_measured(
    tmp_path: Path, seconds: float, drafts: int
):
    pipeline = import_module("edgecs_convert.distill.pipeline")
    worth = import_module("edgecs_convert.distill.measure").Worth
    made = pipeline.Candidate(
        "head", tmp_path, 1.0, worth([0.0], seconds, drafts), 4e-3, 1.0, 1.0
    ).state()
    about = {
        "name": "d",
        "description": "",
        "license": "",
        "file": "d.onnx",
        "cache": "growing",
        "window": 64,
        "vocabulary": "0" * 64,
        "made": made,
    }
    assert parse_drafter(about, tmp_path).right == 0
    assert made.get("ms_a_token") == (2.0 if drafts else None)


@needs_torch
@pytest.mark.filterwarnings("ignore")
def test_from_a_model_to_a_drafter_and_its_answers(
    edgecs: Edgecs, tiny_gguf: Path, tmp_path: Path
):
    outcome = make(edgecs, tiny_gguf, tmp_path, "--epochs", 1, "--json")
    assert outcome.code == 0, outcome.err
    report = json.loads(outcome.out)
    manifest = read_drafter(tmp_path / "made")
    assert manifest.made is not None
    assert manifest.made["agreement"] == report["agreement"]
    assert manifest.made["tokens"] >= 1000
    fixed = ("-m", tiny_gguf, "-c", 512, "-p", "hi", "-n", 40, "-q", "--temp", 0)
    plain = edgecs("generate", *fixed, "--no-spec")
    matrix = ("--k-matrix", "2,0;0,0")
    drafted = edgecs("generate", *fixed, "--draft", tmp_path / "made", *matrix)
    assert drafted.out == plain.out

    again = make(edgecs, tiny_gguf, tmp_path, "--epochs", 1)
    one_line(again, 2, "exists already")


@needs_export
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("shape", [("--layers", 2), ("--width", 64, "--layers", 1)])
def test_all_kinds_are_made_and_the_best_is_kept(
    edgecs: Edgecs, tiny_gguf: Path, tmp_path: Path, shape: tuple[object, ...]
):
    kinds = ("--kind", "decoder", "--kind", "head", "--finish", "tvd", *shape)
    outcome = make(edgecs, tiny_gguf, tmp_path, *kinds, "--epochs", 0.2, "--json")
    assert outcome.code == 0, outcome.err
    report = json.loads(outcome.out)
    names = [one["name"] for one in report["candidates"]]
    assert names == ["decoder", "decoder-tvd", "head", "head-tvd"]
    best = max(report["candidates"], key=lambda one: one["expected_speedup"])
    assert report["expected_speedup"] == best["expected_speedup"]
    fixed = ("-m", tiny_gguf, "-c", 512, "-p", "hi", "-n", 30, "-q", "--temp", 0)
    plain = edgecs("generate", *fixed, "--no-spec").out
    for name in names:
        folder = tmp_path / "work" / "drafters" / name
        manifest = read_drafter(folder)
        assert manifest.made is not None
        assert manifest.made["loss"] == ("tvd" if name.endswith("tvd") else "fkl")
        drafted = edgecs("generate", *fixed, "--draft", folder, "--k-matrix", "2,0;0,0")
        assert drafted.out == plain, name
    own = [*read_samples(tmp_path / "work" / "decoder-own")]
    assert sum(s.size for s in own) >= 250
    tiny = read_drafter(tmp_path / "work" / "drafters" / "decoder")
    assert tiny.unknown == 120  # the row for all tokens that it lacks


@needs_export
@pytest.mark.filterwarnings("ignore")
def test_a_decoder_knows_a_whole_vocabulary(
    edgecs: Edgecs, tiny_gguf: Path, tmp_path: Path
):
    kinds = ("--kind", "decoder", "--rows", 272, "--width", 64, "--finish", "jsd")
    outcome = make(edgecs, tiny_gguf, tmp_path, *kinds, "--epochs", 0.2)
    assert outcome.code == 0, outcome.err
    assert "decoder-jsd: first token" in outcome.out
    assert read_drafter(tmp_path / "made").unknown is None


@needs_export
@pytest.mark.parametrize(
    ("shape", "says"),
    [
        (("--width", 100), "a multiple of 64: got 2 layers, 100 wide"),
        (("--width", 128), "wider than its target (64)"),
        (("--layers", 9), "9 layers cannot be kept: the target has 2"),
    ],
)
def test_decoders_that_cannot_be(
    edgecs: Edgecs,
    tiny_gguf: Path,
    tmp_path: Path,
    shape: tuple[object, ...],
    says: str,
):
    one_line(
        make(edgecs, tiny_gguf, tmp_path, "--kind", "decoder", "-q", *shape), 2, says
    )
    # Answers take hours: nothing is begun.
    assert not (tmp_path / "work").exists()


@needs_export
def test_an_architecture_that_no_decoder_can_be_made_from(
    edgecs: Edgecs, tiny_gguf: Path, tmp_path: Path
):
    """Said in one sentence, as the exporter says it."""
    from edgecs_convert.onnx.export import load_weights

    other = tmp_path / "other.gguf"
    other.write_bytes(tiny_gguf.read_bytes().replace(b"llama", b"llamz"))
    with pytest.raises(ModelError, match="transformers cannot read other.gguf") as told:
        load_weights(other)
    assert "\n" not in str(told.value)


@needs_torch
@pytest.mark.filterwarnings("ignore")
def test_what_followed_from_an_older_training_goes_before_a_new_one(
    edgecs: Edgecs, tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A run that is ended after the first candidate must not go on with the old."""
    finish = ("--epochs", 0.1, "--finish", "tvd")
    assert make(edgecs, tiny_gguf, tmp_path, *finish).code == 0
    shutil.rmtree(tmp_path / "made")
    (tmp_path / "work" / "head.pt").unlink()
    assert (tmp_path / "work" / "head-tvd.pt").exists()

    def ended(*arguments: object) -> None:
        raise KeyboardInterrupt

    pipeline = import_module("edgecs_convert.distill.pipeline")
    monkeypatch.setattr(pipeline, "worth", ended)
    assert make(edgecs, tiny_gguf, tmp_path, *finish, "-q").code == 130
    assert (tmp_path / "work" / "head.pt").exists()
    assert not (tmp_path / "work" / "head-tvd.pt").exists()


@needs_torch
@pytest.mark.filterwarnings("ignore")
def test_a_drafter_learns_from_what_sessions_kept(
    edgecs: Edgecs, tiny_gguf: Path, tmp_path: Path
):
    made = make(edgecs, tiny_gguf, tmp_path, "--epochs", 0.1)
    assert made.code == 0, made.err
    log = tmp_path / "log"
    said = ("generate", "-m", tiny_gguf, "-c", 512, "-n", 40, "-q", "-s", 1)
    for text in ("hello", "what"):
        plain = edgecs(*said, "-p", text, "--no-spec").out
        drafter = ("--draft", tmp_path / "made", "--k-matrix", "3,2;0,0")
        kept = edgecs(*said, "-p", text, *drafter, "--log-answers", log)
        assert kept.out == plain
    first, second = read_samples(log)
    assert 1 < second.size < first.size == 40  # the second one came to its end
    assert first.number != second.number
    table = TargetFile(tiny_gguf).table(np.arange(272))
    logits = first.states.astype(np.float32) @ table.T
    picked = np.take_along_axis(logits, first.top_ids[1:], axis=1)
    assert np.allclose(picked, first.top_logits[1:].astype(np.float32), atol=0.3)

    work = ("--work", tmp_path / "work", "-o", tmp_path / "better", "--json")
    sizes = ("--tokens", 1000, "--answer", 16, "--parallel", 8, "--rows", 120)
    fixed = ("distill", "-m", tiny_gguf, "-c", 256, *sizes, *work)
    outcome = edgecs(*fixed, "--resume-from-log", log, "--epochs", 1)
    assert outcome.code == 0, outcome.err
    manifest = read_drafter(tmp_path / "better")
    assert manifest.made is not None
    assert manifest.made["prompts"] == "sessions"
    assert manifest.made["tokens"] == first.size + second.size
    before, after = (
        (tmp_path / name / "head.onnx").read_bytes() for name in ("made", "better")
    )
    assert before != after
    empty = tmp_path / "empty"
    empty.mkdir()
    other = ("--work", tmp_path / "work", "-o", tmp_path / "third")
    nothing = edgecs(*fixed[:-5], *other, "-q", "--resume-from-log", empty)
    one_line(nothing, 2, "has no answers: store some with")


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
    from edgecs_convert.distill.measure import worth
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
        return worth(folder, every, 40, threading.Event()).shares

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


# What is refused.


def test_distill_needs_its_extra(
    edgecs: Edgecs, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch
):
    module = import_module(
        "edgecs_cli.commands.distill"
    )  # `edgecs_cli.commands.distill` is a command too
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    outcome = edgecs("distill", "-m", tiny_gguf, "-o", "out")
    one_line(outcome, 2, "needs torch", 'pip install "edgecs[distill]"')


def test_what_is_no_model_is_refused(tmp_path: Path):
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUF" + b"\0" * 100)
    with pytest.raises(ModelError, match="cannot be read as a GGUF"):
        TargetFile(path)


@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
def test_embeddings_are_those_of_the_file(tmp_path: Path, kind: str):
    plain = TargetFile(write_random_gguf(tmp_path / "plain.gguf", padding=5))
    file = TargetFile(write_random_gguf(tmp_path / "x.gguf", kind=kind, padding=5))
    ids = np.array([3, 100, 271], dtype=np.int32)
    assert (file.width, file.vocab_size) == (64, 277)
    apart = np.abs(file.table(ids) - plain.table(ids)).max()
    assert apart == 0 if kind == "F32" else 0 < apart < 0.1
    assert np.array_equal(file.norm(), np.ones(64))
    shape = file.shape(100)
    assert (shape.heads * shape.size, shape.heads % shape.kv_heads) == (64, 0)
