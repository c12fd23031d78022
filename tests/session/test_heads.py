"""Sessions with heads: the tokens of plain decoding, and drafts that are right."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecs.decoding.cascade import stack
from edgecs.decoding.kmatrix import KMatrix
from edgecs.drafters.maxgram import MaxGram
from edgecs.engines.load_options import LoadOptions
from edgecs.runtime.loader import Loaded, LoadedDrafter, load, load_drafter
from edgecs.sampling.chain import Rule
from edgecs.sampling.settings import Sampling
from edgecs.session.session import Session
from tests import drafter_files as files
from tests.commands import Edgecs

ROOM = 192
OPTIONS = LoadOptions(n_ctx=ROOM, n_batch=32, max_draft=15, threads=1, n_gpu_layers=0)
MATRICES = ["1,0;0,0", "4,0;0,0", "3,3;0,0", "9,2;0,0"]
GREEDY, WARM = Sampling(temperature=0), Sampling(temperature=0.8, seed=3)


class Both(NamedTuple):
    """A target with a head, and the same target alone."""

    plain: Loaded
    target: Loaded
    drafter: LoadedDrafter

    def drafting(self, matrix: str, rule: Rule) -> Session:
        grid = KMatrix.parse(matrix)
        chain = stack([self.drafter.named], MaxGram(), grid)
        return self.target.session(chain, grid.counts(0), rule=rule)


@pytest.fixture(scope="module", params=["qwen3", "llama"])
def both(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Both]:
    folder = tmp_path_factory.mktemp("heads")
    path = files.target(folder / "target.gguf", request.param)
    head = files.eagle3(folder / "head.gguf")
    with (
        load(path, OPTIONS) as plain,
        load(path, OPTIONS) as target,
        load_drafter(head, target, OPTIONS) as drafter,
    ):
        assert target.target.uniform == (target.model.kernels is not None)
        yield Both(plain, target, drafter)


tokens = st.integers(0, 250)
actions = st.lists(
    st.tuples(
        st.sampled_from(["go on", "again", "other", "edit", "say more"]),
        st.lists(tokens, min_size=1, max_size=60),
        st.integers(1, 30),  # tokens that are taken
        st.booleans(),  # whether the answer is interrupted rather than left
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=25)
@given(
    st.lists(tokens, min_size=1, max_size=80),
    actions,
    st.sampled_from(MATRICES),
    st.sampled_from([GREEDY, WARM]),
)
def test_an_answer_is_that_of_plain_decoding(
    both: Both, prompt: list[int], steps: list, matrix: str, sampling: Sampling
):
    """Answers that are left, interrupted, regenerated, edited, up to a full context."""
    rule = both.plain.rule(sampling)
    with (
        both.plain.session(rule=rule) as plain,
        both.drafting(matrix, both.target.rule(sampling)) as drafting,
    ):
        text = prompt
        for kind, more, count, interrupts in steps:
            expected = taken(plain, text, count)
            assert taken(drafting, text, count, interrupts) == expected
            if kind == "go on":
                text = text + expected
            elif kind == "other":
                text = more
            elif kind == "edit":
                text = text[: len(text) // 2] + more
            elif kind == "say more":
                text = text + expected + more
            text = text[: ROOM - 1]
    assert not drafting.stats.faults


def taken(
    session: Session, prompt: list[int], count: int, interrupts: bool = False
) -> list[int]:
    """The first tokens of an answer, which may end in mid-draft."""
    stream, found = session.generate(prompt), list[int]()
    for token in itertools.islice(stream, count):
        found.append(token.id)
    if interrupts:
        session.interrupt()
        list(stream)
    stream.close()
    return found


def test_the_context_is_used_to_its_last_cell(both: Both):
    rule = both.plain.rule(GREEDY)
    prompt = [7] * (ROOM - 20)
    with both.plain.session(rule=rule) as plain:
        expected = [token.id for token in plain.generate(prompt)]
    with both.drafting("4,2;0,0", rule) as drafting:
        assert [token.id for token in drafting.generate(prompt)] == expected
        assert not drafting.stats.faults


def share(tmp_path: Path, head: Path, matrix: str) -> tuple[float, int]:
    """The share of a head's draft tokens that are right, and their number."""
    target = files.target(tmp_path / "target.gguf", fixed=files.bigram)
    prompt = [int(token) for token in files.CYCLE[:20]]
    with (
        load(target, OPTIONS) as loaded,
        load_drafter(head, loaded, OPTIONS) as drafter,
        Both(loaded, loaded, drafter).drafting(matrix, loaded.rule(GREEDY)) as session,
    ):
        answer = [t.id for t in session.generate(prompt, max_tokens=150)]
        assert answer == [int(token) for token in files.CYCLE[20:170]]
        found = session.stats.by_source()[drafter.name]
        return found["accepted"] / found["tested"], found["tested"]


def test_a_head_wired_by_tokens_is_right_at_every_depth(tmp_path: Path):
    head = tmp_path / "head.gguf"
    files.eagle3(head, fixed=files.by_token, changes=files.BY_TOKEN)
    right, tested = share(tmp_path, head, "6,0;0,0")
    assert tested > 100
    assert right >= 0.95


def test_a_head_wired_by_states_is_right(tmp_path: Path):
    head = files.eagle3(tmp_path / "head.gguf", own=True, fixed=files.by_state)
    right, tested = share(tmp_path, head, "1,0;0,0")
    assert tested > 60
    assert right >= 0.95


def test_the_planner_uses_a_head_and_continues_it(edgecs: Edgecs, tmp_path: Path):
    """A text without repetition, then one with: `head <- mag` in one chain."""
    target = files.target(tmp_path / "target.gguf", fixed=files.bigram, layers=12)
    head = tmp_path / "head.gguf"
    files.eagle3(head, fixed=files.by_token, changes=files.BY_TOKEN, layers=(1, 5, 9))
    fixed = ("-m", target, "-c", 1024, "-p", "hello", "-n", 400, "--temp", 0, "-q")
    plain = edgecs("generate", *fixed, "--no-spec", "--json")
    trace = tmp_path / "trace.jsonl"
    drafted = edgecs("generate", *fixed, "--draft", head, "--json", "--trace", trace)
    assert drafted.code == 0, drafted.err
    report = json.loads(drafted.out)
    assert report["tokens"] == json.loads(plain.out)["tokens"]
    assert not report["speculative"]["faults"]
    assert '"head"' in trace.read_text()
