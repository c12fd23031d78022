"""Sessions with heads: the tokens of plain decoding, and drafts that are right."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecs.decoding.cascade import stack
from edgecs.decoding.kmatrix import KMatrix
from edgecs.drafters.maxgram import MaxGram
from edgecs.engines.load_options import LoadOptions
from edgecs.engines.state_head import StateHead
from edgecs.runtime.loader import OWN_HEAD, Loaded, LoadedDrafter, load, load_drafter
from edgecs.sampling.chain import Rule
from edgecs.sampling.settings import Sampling
from edgecs.session.session import Session
from tests import drafter_files as files
from tests import families
from tests.commands import Edgecs, one_line

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


def made(folder: Path, kind: str) -> tuple[Path, Path]:
    """A target and its drafter, with random weights."""
    path, head = folder / "target.gguf", folder / "head.gguf"
    if kind in ("qwen3", "llama"):  # EAGLE-3
        return files.target(path, kind), files.eagle3(head)
    if kind == "last layer":  # EAGLE-3 too
        return files.gemma4(path), files.eagle3(head, layers=(1, 3, 4))
    if kind in ("dflash", "dspark"):
        return files.target(path), files.dflash(head, markov=8 * (kind == "dspark"))
    if kind == "gemma4":
        return files.gemma4(path), files.assistant(head)
    if kind == "recurrent":
        return families.qwen35(path, head=True), OWN_HEAD
    return files.with_heads(path, heads=int(kind)), OWN_HEAD


KINDS = ["qwen3", "llama", "last layer", "1", "3", "recurrent"]
KINDS += ["dflash", "dspark", "gemma4"]


@pytest.fixture(scope="module", params=KINDS)
def both(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Both]:
    path, head = made(tmp_path_factory.mktemp("heads"), request.param)
    with (
        load(path, OPTIONS) as plain,
        load(path, OPTIONS) as target,
        load_drafter(head, target, OPTIONS) as drafter,
    ):
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


@settings(max_examples=12)
@given(
    st.lists(tokens, min_size=1, max_size=60),
    st.sampled_from(["2,2,1;0,3,0;0,0,0", "3,0,2;0,2,2;0,0,0"]),
    st.sampled_from([GREEDY, WARM]),
)
def test_a_small_model_reviews_a_head(
    both: Both, sibling: Path, prompt: list[int], matrix: str, sampling: Sampling
):
    rule, grid = both.plain.rule(sampling), KMatrix.parse(matrix)
    with both.plain.session(rule=rule) as plain:
        expected = taken(plain, prompt, 40)
    with load_drafter(sibling, both.target, OPTIONS) as small:
        chain = stack([small.named, both.drafter.named], MaxGram(), grid)
        with both.target.session(chain, grid.counts(0), rule=rule) as drafting:
            assert taken(drafting, prompt, 40) == expected
            assert not drafting.stats.faults
            head = both.drafter.model
            assert isinstance(head, StateHead)
            assert len(head._cache) > len(prompt) // 2 or len(expected) < 4


@pytest.fixture(scope="module")
def sibling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return files.target(tmp_path_factory.mktemp("sibling") / "small.gguf", seed=9)


def share(
    target: Path, head: Path, matrix: str, options: LoadOptions = OPTIONS
) -> tuple[float, int]:
    """The share of a head's draft tokens that are right, and their number.

    target: a bigram target.
    """
    prompt = [int(token) for token in files.CYCLE[:20]]
    with (
        load(target, options) as loaded,
        load_drafter(head, loaded, options) as drafter,
        Both(loaded, loaded, drafter).drafting(matrix, loaded.rule(GREEDY)) as session,
    ):
        answer = [t.id for t in session.generate(prompt, max_tokens=150)]
        assert answer == [int(token) for token in files.CYCLE[20:170]]
        found = session.stats.by_source()[drafter.name]
        return found["accepted"] / found["tested"], found["tested"]


def test_a_head_wired_by_tokens_is_right_at_every_depth(tmp_path: Path):
    target = files.target(tmp_path / "target.gguf", fixed=files.bigram)
    head = tmp_path / "head.gguf"
    files.eagle3(head, fixed=files.by_token, changes=files.BY_TOKEN)
    right, tested = share(target, head, "6,0;0,0")
    assert tested > 100
    assert right >= 0.95


def test_a_head_wired_by_states_is_right(tmp_path: Path):
    target = files.target(tmp_path / "target.gguf", fixed=files.bigram)
    head = files.eagle3(tmp_path / "head.gguf", own=True, fixed=files.by_state)
    right, tested = share(target, head, "1,0;0,0")
    assert tested > 60
    assert right >= 0.95


@pytest.mark.parametrize(
    "changes",
    [{}, {"flash_attention": "off"}, {"type_k": "f32", "type_v": "bf16"}],
    ids=str,
)
@pytest.mark.parametrize(
    ("wiring", "matrix"),
    [(files.assistant_by_token, "6,0;0,0"), (files.assistant_by_state, "1,0;0,0")],
)
def test_an_assistant_that_is_wired_is_right(
    tmp_path: Path, wiring: files.Fixed, matrix: str, changes: dict[str, Any]
):
    target = files.gemma4(tmp_path / "target.gguf", fixed=files.bigram)
    head = files.assistant(tmp_path / "head.gguf", fixed=wiring)
    options = replace(OPTIONS, **changes)
    right, tested = share(target, head, matrix, options)
    assert tested > 60
    assert right >= 0.95


def test_a_block_wired_by_states_is_right(tmp_path: Path):
    target = files.target(tmp_path / "target.gguf", fixed=files.repeating)
    head = tmp_path / "head.gguf"
    files.dflash(head, fixed=files.by_features, changes=files.BY_FEATURES)
    with (
        load(target, OPTIONS) as loaded,
        load_drafter(head, loaded, OPTIONS) as drafter,
        Both(loaded, loaded, drafter).drafting("7,0;0,0", loaded.rule(GREEDY)) as one,
    ):
        for token in (7, 99):  # the second text must not see the cells of the first
            answer = [t.id for t in one.generate([token] * 20, max_tokens=100)]
            assert answer == [token] * 100
            found = one.stats.by_source()["head"]
            assert found["tested"] > 80
            assert found["accepted"] >= 0.95 * found["tested"]


@pytest.mark.parametrize("heads", [1, 2, 3])
def test_mtp_heads_wired_by_tokens_are_right_at_every_depth(tmp_path: Path, heads: int):
    path = tmp_path / "target.gguf"
    files.with_heads(path, heads=heads, fixed=files.mtp_by_token)
    right, tested = share(path, OWN_HEAD, "6,0;0,0")
    assert tested > 100
    assert right >= 0.95


def test_an_mtp_head_wired_by_states_is_right(tmp_path: Path):
    path = tmp_path / "target.gguf"
    files.with_heads(path, fixed=files.mtp_by_state, own_output=True)
    right, tested = share(path, OWN_HEAD, "1,0;0,0")
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


def answer(edgecs: Edgecs, model: Path, *options: object) -> dict[str, Any]:
    fixed = ("-c", 512, "-p", "hello, hello", "-n", 80, "--json", "-q")
    outcome = edgecs("generate", "-m", model, *fixed, *options)
    assert outcome.code == 0, outcome.err
    report: dict[str, Any] = json.loads(outcome.out)
    return report


@pytest.mark.parametrize("usual", [(), ("--draft", "auto")])
@pytest.mark.parametrize("options", [("--temp", 0), ("--temp", 0.8, "-s", 7)])
def test_a_head_in_the_file_is_found_without_a_flag(
    edgecs: Edgecs,
    tmp_path: Path,
    options: tuple[object, ...],
    usual: tuple[object, ...],
):
    path = files.with_heads(tmp_path / "target.gguf", fixed=files.mtp_by_token)
    plain = answer(edgecs, path, *options, "--no-spec")
    drafted = answer(edgecs, path, *options, *usual)
    assert drafted["tokens"] == plain["tokens"]
    assert drafted["speculative"]["chain"][:2] == ["target", "head"]
    assert not drafted["speculative"]["faults"]
    without = answer(edgecs, path, *options, "--draft", "none")
    assert without["tokens"] == plain["tokens"]
    assert "head" not in without["speculative"]["chain"]


def test_the_start_line_names_a_head_that_was_found(edgecs: Edgecs, tmp_path: Path):
    path = files.with_heads(tmp_path / "target.gguf")
    fixed = ("-m", path, "-c", 128, "-p", "hello", "-n", 4)
    assert " · speculation on (head <- " in edgecs("generate", *fixed).err
    plain = edgecs("generate", *fixed, "--draft", "none").err
    assert " · speculation on\n" in plain


def test_a_head_is_named_in_a_matrix(edgecs: Edgecs, tmp_path: Path):
    path = files.with_heads(tmp_path / "target.gguf", fixed=files.mtp_by_token)
    plain = answer(edgecs, path, "--temp", 0, "--no-spec")
    fixed = ("--draft", "head", "--k-matrix", "4,2;0,0", "--temp", 0)
    drafted = answer(edgecs, path, *fixed)
    assert drafted["tokens"] == plain["tokens"]
    assert drafted["speculative"]["by_level"]["head"]["accepted"] > 20


def test_a_model_without_a_head(edgecs: Edgecs, tiny_gguf: Path):
    outcome = edgecs(
        "generate", "-m", tiny_gguf, "-p", "x", "-c", 64, "--draft", "head"
    )
    one_line(outcome, 3, "tiny.gguf has no MTP head", "--draft none")


def test_a_head_that_crashes_llama_cpp_is_left_out(edgecs: Edgecs, tmp_path: Path):
    """Plain decoding and Max-Gram remain; asked for, it is refused."""
    path = tmp_path / "target.gguf"
    files.with_heads(path, without="blk.3.ffn_up.weight")
    fixed = ("-m", path, "-c", 128, "-p", "hello", "-n", 8)
    outcome = edgecs("generate", *fixed, "-v")
    assert outcome.code == 0, outcome.err
    assert "drafter head: left out, " in outcome.err
    outcome = edgecs("generate", *fixed, "--draft", "head")
    one_line(outcome, 3, "target.gguf crashes llama.cpp")
