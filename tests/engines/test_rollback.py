"""Models with states and windows: drafts are removed exactly, or computed again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecs.core.context import Context
from edgecs.core.draft import NOTHING, Draft, Request, score_one
from edgecs.decoding.verification import verify
from edgecs.engines.llama.checkpoints import LEAST, MOST, Checkpoints, Rollback
from edgecs.engines.llama.language_model import LlamaLM
from edgecs.engines.load_options import LoadOptions
from edgecs.runtime.loader import Loaded, load
from edgecs.sampling.chain import greedy
from edgecs.sampling.settings import Sampling
from edgecs.testing.fakes import ScriptedDrafter
from tests.engines.calls import watched
from tests.families import FAMILIES, RECURRENT, VOCABULARY
from tests.reference import plain_greedy

CHUNK = 32
# Several chunks, and for windowed layers more cells than they keep (256).
LONG = [int(i) for i in np.random.default_rng(3).integers(0, 256, 300)]
PROMPTS = [list(b"hello, hello, hello"), LONG, [5]]
OPTIONS = LoadOptions(n_ctx=640, n_batch=CHUNK, max_draft=12, threads=1)


class Pair(NamedTuple):
    """A model, and the same one for plain decoding of every text from its start."""

    path: Path
    drafting: Loaded
    plain: Loaded

    def truth(
        self, prompt: Sequence[int], n: int, sampling: Sampling | None = None
    ) -> list[int]:
        """The next n tokens, without drafts and without cells of another text."""
        self.plain.target.reset()
        rule = self.plain.rule(sampling or Sampling())
        with self.plain.session(rule=rule) as session:
            return [t.id for t in session.generate(prompt, max_tokens=n)]


@contextmanager
def opened(path: Path, options: LoadOptions = OPTIONS) -> Iterator[Pair]:
    with load(path, options) as drafting, load(path, options) as plain:
        yield Pair(path, drafting, plain)


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def pair(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    name = request.param
    path = FAMILIES[name](tmp_path_factory.mktemp("families") / f"{name}.gguf")
    with opened(path) as found:
        yield found


def test_plain_decoding_is_that_of_llama_cpp(pair: Pair):
    kernels = pair.plain.model.kernels
    expected = plain_greedy(
        pair.path, PROMPTS, 40, n_ctx=640, chunk=CHUNK, kernels=kernels
    )
    for prompt, answer in zip(PROMPTS, expected, strict=True):
        assert pair.truth(prompt, 40) == answer
        assert len(set(answer)) > 10  # an answer that repeats a token tells little


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("wrong", [0.0, 0.2, 0.6, 1.0])
@pytest.mark.parametrize("draft_max", [1, 3, 12])
def test_tokens_are_those_of_plain_decoding(
    pair: Pair, temperature: float, wrong: float, draft_max: int
):
    sampling = Sampling(temperature=temperature, seed=5)
    accepted = 0
    for prompt in PROMPTS:
        answer = pair.truth(prompt, 60, sampling)
        drafter = ScriptedDrafter(
            [*prompt, *answer], wrong=wrong, vocab_size=VOCABULARY, seed=draft_max
        )
        rule = pair.drafting.rule(sampling)
        with pair.drafting.session([drafter], draft_max, rule=rule) as session:
            assert session.off_reason is None
            said = [t.id for t in session.generate(prompt, max_tokens=60)]
            assert said == answer
            assert session.stats.tested
            accepted += session.stats.accepted
    assert (accepted == 0) == (wrong == 1.0)


# One step: where the conversation is cut (a share of it; 1: not), what is appended, how
# many tokens are generated, after how many the consumer stops, how often a drafted
# token is wrong, the longest draft, whether sampled.
steps = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.3, 0.7, 0.95, 1.0, 1.0]),
        st.lists(st.integers(0, 255), max_size=40),
        st.integers(1, 24),
        st.integers(1, 24),
        st.sampled_from([0.0, 0.3, 1.0]),
        st.integers(0, 12),
        st.booleans(),
    ),
    min_size=1,
    max_size=8,
)


@given(steps=steps)
@settings(max_examples=40)
def test_edited_and_interrupted_conversations(pair: Pair, steps):
    text = [*LONG[:40]]
    pair.drafting.target.reset()
    for cut, more, most, stop, wrong, draft_max, sampled in steps:
        text = [*text[: max(1, int(cut * len(text)))], *more][:600]
        sampling = Sampling(temperature=0.8 if sampled else 0.0, seed=len(text))
        answer = pair.truth(text, most, sampling)
        drafter = ScriptedDrafter(
            [*text, *answer], wrong=wrong, vocab_size=VOCABULARY, seed=most
        )
        rule = pair.drafting.rule(sampling)
        with pair.drafting.session([drafter], draft_max, rule=rule) as session:
            for _ in range(2):  # the second time, the answer is regenerated
                said = []
                for token in session.generate(text, max_tokens=most):
                    said.append(token.id)
                    if len(said) == stop:
                        break
                assert said == answer[:stop]
        text += said


def row(target: LlamaLM, tokens: Sequence[int]) -> Any:
    """The row after a text, with as few calls as possible."""
    return score_one(target, Context(tokens)).logits[0].copy()


def fresh(pair: Pair, tokens: Sequence[int]) -> Any:
    """The row after a text that is read from its start."""
    pair.plain.target.reset()
    return row(pair.plain.target, tokens)


def differ(one: Any, other: Any) -> bool:
    """Whether two rows differ by more than rounding."""
    return bool(np.abs(one - other).max() > 1e-2)


def opened_family(name: str, folder: Path, **changes: object) -> Any:
    path = FAMILIES[name](folder / f"{name}.gguf")
    return opened(path, replace(OPTIONS, **changes))


def spoken(target: LlamaLM, prompt: Sequence[int], tokens: Sequence[int]) -> Context:
    """A context whose last tokens were computed one by one."""
    target.reset()
    context = Context(prompt)
    score_one(target, context)
    for token in tokens:
        context.append([token])
        score_one(target, context)
    return context


@pytest.mark.parametrize("name", ["qwen35", "lfm2"])
def test_the_snapshot_of_an_earlier_call_is_not_used(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # Calls of one token have no snapshot of the state before them, but llama.cpp takes
    # that of an earlier call and reports success.
    def replaced(target: LlamaLM, draft: Draft = NOTHING) -> Any:
        """The row after a token in whose place another one was computed before."""
        context = spoken(target, LONG[:20], [7, 9, 200])
        score_one(target, context.with_tail([31]), draft)
        return score_one(target, context.with_tail([42])).logits[0].copy()

    with opened_family(name, tmp_path) as pair:
        target = pair.drafting.target
        assert target.snapshots == OPTIONS.max_draft
        expected = fresh(pair, [*LONG[:20], 7, 9, 200, 42])
        drafts = [NOTHING, Draft.chain([5, 6], "x"), Draft.chain([5] * 11, "x")]
        for draft in drafts:
            assert not differ(replaced(target, draft), expected)
        monkeypatch.setattr(Rollback, "_may_remove", lambda self, n, removed: True)
        for draft in drafts:
            assert differ(replaced(target, draft), expected)


def test_a_removal_behind_the_window_is_not_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # Cells behind the window are overwritten, but llama.cpp removes those after them
    # and reports success.
    with opened_family("gemma3", tmp_path) as pair:
        target = pair.drafting.target
        near, far = [*LONG, *LONG][:590], LONG[:295]
        for kept in (near, far):
            expected = fresh(pair, [*kept, 42])
            row(target, [*LONG, *LONG])
            assert not differ(row(target, [*kept, 42]), expected)
        with monkeypatch.context() as patch:
            patch.setattr(Rollback, "_may_remove", lambda self, n, removed: True)
            row(target, [*LONG, *LONG])
            assert differ(row(target, [*far, 42]), fresh(pair, [*far, 42]))


def test_cells_of_the_window_are_enough_for_the_drafts_of_a_call(tmp_path: Path):
    with opened_family("gemma3", tmp_path) as pair:
        target, text = pair.drafting.target, [*LONG, *LONG]
        calls = watched(target)
        for start in range(400, 480, 8):
            context = Context(text[:start])
            score_one(target, context)
            calls.clear()
            context.append([7])
            score_one(target, context, Draft.chain([5] * 12, "x"))
            context.append([9])
            got = score_one(target, context).logits[0].copy()
            assert [tokens for tokens, _ in calls] == [13, 1]
            assert not differ(got, fresh(pair, context.tokens.tolist()))


def test_full_windows_are_as_before(tmp_path: Path):
    with opened_family("gemma3", tmp_path, swa_full=True) as pair:
        target = pair.drafting.target
        row(target, [*LONG, *LONG])
        calls = watched(target)
        row(target, [*LONG[:200], 42])
        assert calls == [(1, 1)]  # any prefix continues


@pytest.mark.parametrize("name", sorted(RECURRENT))
def test_a_rejected_draft_costs_a_call_only_without_snapshots(
    name: str, tmp_path: Path
):
    with opened_family(name, tmp_path) as pair:
        target = pair.drafting.target
        context = spoken(target, LONG[:20], [7, 9])
        calls = watched(target)
        context.append([11])
        score_one(target, context, Draft.chain([5, 6, 8], "x"))
        context.append([5, 77])  # one accepted
        score_one(target, context, Draft.chain([5], "x"))
        widths = [tokens for tokens, _ in calls]
        assert widths == ([4, 2] if target.snapshots else [4, 2, 2])
        calls.clear()
        context.append([44])
        score_one(target, context, Draft.chain([5, 6], "x"))
        context.append([5, 45])  # one accepted, and no draft follows
        score_one(target, context)
        widths = [tokens for tokens, _ in calls]
        assert widths == ([3, 1] if target.snapshots else [1, 3, 3])


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_an_edited_prompt_is_read_from_the_newest_checkpoint(name: str, tmp_path: Path):
    with opened_family(name, tmp_path) as pair:
        target = pair.drafting.target
        text = [*LONG, *LONG]
        row(target, text)
        for cut in (560, 300, 130):
            edited = [*text[:cut], *LONG[40:60]]
            saves = target.reusable(np.array(edited, np.int32))
            calls = watched(target)
            assert not differ(row(target, edited), fresh(pair, edited))
            read = sum(tokens for tokens, _ in calls)
            assert read == len(edited) - saves
            assert cut - 4 * CHUNK < saves <= cut  # as far apart as checkpoints are


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_a_failed_call_leaves_no_trace(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with opened_family(name, tmp_path) as pair:
        target = pair.drafting.target
        context = spoken(target, LONG[:40], [7, 9])
        with monkeypatch.context() as patch:
            patch.setattr(
                target.calls.output, "logits", None
            )  # fails after llama.cpp's call
            with pytest.raises(TypeError):
                score_one(target, context.with_tail([3]), Draft.chain([5, 6], "x"))
        context.append([4])
        got = score_one(target, context).logits[0].copy()
        assert not differ(got, fresh(pair, context.tokens.tolist()))


def test_checkpoints_are_kept_where_edits_are_likely(tmp_path: Path):
    with opened_family("mamba2", tmp_path) as pair:
        target = pair.drafting.target
        context = spoken(target, LONG[:40], [7])
        points = Checkpoints(target._ctx, 0)
        for length in range(10, 1010, 10):
            points.save(length)
        assert len(points.lengths) == MOST
        assert points.lengths[-3:] == [980, 990, 1000]
        gaps = np.diff([0, *points.lengths])
        assert gaps.max() <= 400
        assert points.newest(985) == 980
        points.cut(985)
        assert points.lengths[-1] == 980
        assert points.size == len(points.lengths) * points.size // len(points.lengths)
        few = Checkpoints(target._ctx, 0, room=1)
        for length in (5, 6, 7, 8):
            few.save(length)
        assert few.lengths[-1] == 8
        assert len(few.lengths) == LEAST
        assert len(context) == 41


def test_the_memory_of_checkpoints_is_bounded(tmp_path: Path):
    with opened_family("qwen35", tmp_path) as pair:
        points = pair.drafting.target._sequences[0].rollback.points
        for start in range(40):
            row(pair.drafting.target, [*LONG[:200], start, *LONG[:100]])
        assert len(points.lengths) <= MOST


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_a_saved_state_continues(name: str, tmp_path: Path):
    with opened_family(name, tmp_path) as pair:
        target = pair.drafting.target
        context = spoken(target, LONG, [7, 9, 31])
        target.end_turn(context)
        saved = target.snapshot()
        assert saved is not None
        row(target, LONG[200:])  # something else
        assert target.restore(saved)
        calls = watched(target)
        longer = [*context.tokens.tolist(), 42]
        for _ in range(2):  # the second time from the checkpoint of the loaded state
            assert not differ(row(target, longer), fresh(pair, longer))
            longer[-1] += 1
        assert sum(tokens for tokens, _ in calls) == 4


# One call: for every sequence that takes part, the length of its draft and how much of
# it is right.
shared = st.lists(
    st.dictionaries(
        st.integers(0, 2),
        st.tuples(st.integers(0, 12), st.integers(0, 12)),
        min_size=1,
    ),
    min_size=1,
    max_size=10,
)


@pytest.mark.parametrize("name", sorted(FAMILIES))
@given(calls=shared)
@settings(max_examples=15)
def test_sequences_do_not_disturb_each_other(
    name: str, tmp_path_factory: pytest.TempPathFactory, calls: Any
):
    with trio(name, tmp_path_factory) as (target, plain):
        contexts = [Context(LONG[i : 50 + 20 * i]) for i in range(3)]
        target.reset()
        for number, context in enumerate(contexts):
            target.score([Request(context, sequence=number)])
            context.append([number])
        for call in calls:
            requests, texts = [], {}
            for number, (size, right) in call.items():
                context = contexts[number]
                texts[number] = continued(plain, context, size + 1)
                draft = [*texts[number][:right], *range(1, 13)][:size]
                requests.append(Request(context, Draft.chain(draft, "x"), number))
            found = target.score(requests)
            for request, rows in zip(requests, found, strict=True):
                context, text = request.context, texts[request.sequence]
                verdict = verify(request.draft, rows, greedy, context)
                said = [*request.draft.tokens[list(verdict.path)].tolist()]
                said.append(verdict.token)
                assert said == text[: len(said)]
                context.append(said)


def continued(plain: LlamaLM, context: Context, size: int) -> list[int]:
    """The next tokens, decoded one by one in another model."""
    plain.reset()
    alone = Context(context.tokens)
    for _ in range(size):
        alone.append([int(score_one(plain, alone).logits[0].argmax())])
    return alone.tokens[len(context) :].tolist()


@contextmanager
def trio(
    name: str, folders: pytest.TempPathFactory
) -> Iterator[tuple[LlamaLM, LlamaLM]]:
    """A model with three sequences, and one with one."""
    path = FAMILIES[name](folders.mktemp("trio") / f"{name}.gguf")
    three = replace(OPTIONS, sequences=3, n_ctx=512)
    with load(path, three) as several, load(path, OPTIONS) as plain:
        yield several.target, plain.target


@pytest.mark.parametrize("draft_max", [3, 12])
def test_up_to_the_end_of_the_context(pair: Pair, draft_max: int):
    n_ctx = pair.plain.target.n_ctx
    prompt = [*LONG, *LONG]
    answer = pair.truth(prompt, 100)
    drafter = ScriptedDrafter(
        [*prompt, *answer], wrong=0.3, vocab_size=VOCABULARY, seed=1
    )
    with pair.drafting.session([drafter], draft_max) as session:
        assert [t.id for t in session.generate(prompt)] == answer
        full = len(answer) == n_ctx - len(prompt) + 1
        assert session.finish_reason == ("context" if full else "stop")


def test_a_prompt_that_was_cancelled_is_read_on(pair: Pair):
    target = pair.drafting.target
    target.reset()
    answer = pair.truth(LONG, 20)
    drafter = ScriptedDrafter([*LONG, *answer], wrong=0.3, vocab_size=VOCABULARY)

    def cancel(read: int, size: int) -> None:
        if read > 150:
            target.cancel.set()

    with pair.drafting.session([drafter], 4) as session:
        target.on_read = cancel
        assert list(session.generate(LONG, max_tokens=20)) == []
        assert session.finish_reason == "cancelled"
        target.on_read = None
        target.cancel.clear()
        calls = watched(target)
        said = [t.id for t in session.generate(LONG, max_tokens=20)]
        assert said == answer
        assert calls[0][0] == CHUNK  # the rest of the prompt, from a whole chunk on
        assert sum(tokens for tokens, _ in calls) < len(LONG)
