"""Answers to learn from: asked, written, kept, and cut into windows."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edgecs.errors import Cancelled, ConfigError, DistillError
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
from edgecs_convert.distill.texts import Vocabulary, batch, choose_vocabulary, windows
from edgecs_convert.distill.topics import half_of, questions
from tests.convert.samples import quiet, sample, wanted


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
    few = np.array([3, 7, 20, 59], dtype=np.int32)
    assert choose_vocabulary(every, 12, 60, [59], few).ids.tolist() == few.tolist()
    two = choose_vocabulary(every, 2, 60, [59], few).ids
    assert two.tolist() == [few[counts[few[:3]].argmax()], 59]
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
