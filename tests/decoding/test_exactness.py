"""With limits the tokens are those of one-by-one decoding on models that need them."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecs.calibrate.probe import QUICK, classify
from edgecs.core.draft import Drafter
from edgecs.costs.cost_model import WIDEST
from edgecs.decoding.exactness import (
    EVERY,
    FIRST_BORDER,
    WORTH,
    Classes,
    Finding,
    Limits,
    range_of,
)
from edgecs.drafters.maxgram import MaxGram
from edgecs.sampling import noise
from edgecs.sampling.chain import Rule, SamplerChain, always, chooser, greedy
from edgecs.sampling.settings import Sampling
from edgecs.session.session import Session
from edgecs.session.stats import Stats
from edgecs.testing.fakes import Endless, ScriptedDrafter, TableModel
from tests.calibrate.kernel_tables import Kernels, Table, tables

STARTS = (0, 256, 512, 1024)
BORDERS = (256, 512, 1024)
some = st.frozensets(st.integers(2, WIDEST), max_size=8)
findings = st.builds(
    lambda same, other: Finding(same - other, other),
    some,
    some,
)
all_classes = st.builds(
    Classes,
    st.dictionaries(st.sampled_from(STARTS), findings),
    st.dictionaries(st.sampled_from(BORDERS), findings),
)
depths = st.integers(0, 2000) | st.sampled_from([255, 256, 511, 512, 1020])
GOOD: dict[str, Any] = {"same": [2, 3], "other": [4]}


def widths(allowed) -> set[int]:
    return set((np.flatnonzero(allowed) + 1).tolist())


def may(classes: Classes, depth: int, width: int) -> bool:
    """By the definition: what was seen to be the same, on both sides of a border."""
    start, end = range_of(depth)
    asked = [classes.inside.get(start)]
    if depth + width > end:
        asked.append(classes.crossing.get(end))
    return width == 1 or all(found and width in found.same for found in asked)


class TestRanges:
    @given(st.integers(0, 1 << 20))
    def test_every_depth_is_in_the_one_range_that_starts_and_ends_at_borders(
        self, depth: int
    ):
        start, end = range_of(depth)
        assert start <= depth < end
        assert range_of(start) == range_of(end - 1) == (start, end)
        assert end == (2 * start or 256)
        assert end & (end - 1) == 0


class TestFindings:
    @given(findings, findings)
    def test_a_width_must_pass_both_probes_that_asked_about_it(self, one, other):
        both = one.both(other)
        assert both == other.both(one)
        asked = one.same | one.other | other.same | other.other
        assert both.same | both.other == asked
        assert not both.same & both.other
        assert both.other == one.other | other.other

    @given(findings, depths, st.integers(2, WIDEST), findings)
    def test_a_call_belongs_to_its_range_or_to_the_border_it_crosses(
        self, found, depth: int, width: int, more
    ):
        classes = Classes()
        for finding in (found, more):
            classes.add(depth, depth + width - 1, finding)
        start, end = range_of(depth)
        both = found.both(more)
        if depth + width > end:
            assert classes == Classes(crossing={end: both})
        else:
            assert classes == Classes(inside={start: both})


class TestClasses:
    @given(all_classes, depths)
    @settings(max_examples=300)
    def test_strict_widths_are_those_of_the_range_and_of_the_border(
        self, classes: Classes, depth: int
    ):
        expected = {n for n in range(1, WIDEST + 1) if may(classes, depth, n)}
        assert widths(classes.strict(depth)) == expected

    @given(depths)
    def test_where_nothing_is_known_only_one_token_is_strict(self, depth: int):
        assert widths(Classes().strict(depth)) == {1}
        everything = Finding(frozenset(range(2, WIDEST + 1)), frozenset())
        beyond = Classes(inside={0: everything})
        assert widths(beyond.strict(300)) == {1}
        assert widths(beyond.strict(250)) == {1, 2, 3, 4, 5, 6}

    @given(all_classes)
    def test_what_comes_back_is_the_same(self, classes: Classes):
        state = json.loads(json.dumps(classes.state(), allow_nan=False))
        assert Classes.from_state(state) == classes

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("same", [0]),  # would be read as the widest of all
            ("same", [-3]),
            ("same", [2, 4]),  # the same and not
            ("same", ["two"]),
            ("same", [None]),
            ("same", [math.inf]),
            ("same", 2),
            ("same", None),
            ("other", [0]),
            ("other", {"4": None, "x": None}),
        ],
    )
    def test_nonsense_is_refused(self, name: str, value: Any):
        found = {**GOOD, name: value}
        for state in (
            {"inside": {"0": found}, "crossing": {}},
            {"inside": {}, "crossing": {"256": found}},
        ):
            with pytest.raises((ValueError, TypeError)):
                Classes.from_state(state)

    @pytest.mark.parametrize(
        "state",
        [
            None,
            [],
            {},
            {"inside": {}},
            {"inside": [], "crossing": None},
            {"inside": {"0": None}, "crossing": {}},
            {"inside": {"0": {"same": [2]}}, "crossing": {}},
            {"inside": {"deep": GOOD}, "crossing": {}},
            {"inside": {"0": GOOD}, "crossing": [GOOD]},
        ],
    )
    def test_what_is_no_state_is_refused(self, state: Any):
        assert Classes.from_state({"inside": {"0": GOOD}, "crossing": {}})
        with pytest.raises((ValueError, KeyError, TypeError)):
            Classes.from_state(state)


class TestLimits:
    @given(all_classes, depths, st.integers(1, 64))
    @settings(max_examples=300)
    def test_fits_is_the_largest_allowed_width_up_to_the_one_asked_for(
        self, classes: Classes, depth: int, width: int
    ):
        limits = Limits(classes, "strict")
        asked = range(1, min(width, WIDEST) + 1)
        assert limits.fits(depth, width) == max(
            n for n in asked if may(classes, depth, n)
        )
        assert widths(limits.allowed(depth)) == widths(classes.strict(depth))

    @given(all_classes, depths, st.integers(1, 64))
    def test_numeric_allows_every_width(self, classes, depth, width):
        limits = Limits(classes, "numeric")
        assert limits.tier(depth) == "numeric"
        assert limits.allowed(depth) is EVERY
        assert limits.fits(depth, width) == width

    @given(all_classes, st.lists(depths, min_size=1), st.floats(0, 1))
    def test_auto_is_strict_where_that_keeps_the_speed(
        self, classes, several, kept: float
    ):
        asked: list[int] = []

        def keeps(allowed, start: int) -> float:
            asked.append(start)
            assert widths(allowed) == {1} | classes.inside[start].same
            return kept

        limits = Limits(classes, "auto", keeps=keeps)
        for depth in several:
            start, _ = range_of(depth)
            found = classes.inside.get(start)
            expected = "strict" if found and kept >= WORTH else "numeric"
            assert limits.tier(depth) == expected
        assert len(asked) == len(set(asked))  # each range is decided once

    def test_auto_is_strict_by_itself_only_where_every_width_is(self):
        some = Finding(frozenset({2, 3}), frozenset())
        every = Finding(frozenset(range(2, WIDEST + 1)), frozenset())
        limits = Limits(Classes(inside={0: some, 256: every}), "auto")
        assert [limits.tier(depth) for depth in (0, 256, 512)] == [
            "numeric",
            "strict",
            "numeric",
        ]

    @given(st.integers(1, 9000))
    def test_what_holds_for_a_uniform_target_holds_everywhere(self, n_ctx: int):
        some = Finding(frozenset({2, 3}), frozenset())
        classes = Classes(inside={0: some}, crossing={256: some})
        classes.extend(n_ctx)
        for depth in {0, n_ctx // 2, n_ctx - 1}:
            assert classes.strict(depth).all()
        assert not classes.strict(4 * n_ctx + 4 * FIRST_BORDER)[1:].any()

    @pytest.mark.parametrize(
        "classes",
        [
            Classes(),
            Classes(inside={0: Finding(frozenset({2}), frozenset({3}))}),
            Classes(crossing={256: Finding(frozenset(), frozenset({2}))}),
        ],
    )
    def test_what_is_not_uniform_stays_as_it_was_probed(self, classes: Classes):
        before = copy.deepcopy(classes)
        classes.extend(5000)
        assert classes == before

    def test_tiers_are_told_in_words(self):
        found = Finding(frozenset({2, 3, 4, 8}), frozenset({6}))
        none = Finding(frozenset(), frozenset({2}))
        classes = Classes(inside={0: found, 256: found, 512: none})
        starts = [0, 100, 256, 512, 1024]

        def told(exact, **options) -> str:
            return Limits(classes, exact, **options).describe(starts)

        assert (
            told("strict")
            == "strict (widths 2-4, 8) to 512, then strict (width 1 only)"
        )
        assert told("numeric") == "numeric"
        kept = {0: 0.99, 256: 0.99, 512: 0.5}
        auto = told("auto", keeps=lambda allowed, depth: kept[depth])
        assert auto == (
            "strict (widths 2-4, 8) to 512, then numeric to 1024, "
            "then numeric (not probed)"
        )
        assert Limits(classes, "auto").describe([]) == "auto"


class Answer(NamedTuple):
    tokens: list[int]
    rounds: list[tuple[int, int]]  # tokens before it, tokens in the call
    stats: Stats


def answer(
    model: TableModel,
    prompt: Sequence[int],
    drafters: Sequence[Drafter] = (),
    draft_max: int = 0,
    limits: Limits | None = None,
    rule: Rule | None = None,
) -> Answer:
    """40 tokens from an empty cache."""
    model.reset()
    rounds: list[tuple[int, int]] = []

    def note(context, done) -> None:
        rounds.append((len(context), 1 + len(done.draft)))

    rule = rule or always(greedy)
    with Session(
        model, Endless(), drafters, draft_max=draft_max, limits=limits, rule=rule
    ) as session:
        session.on_round = note
        tokens = [token.id for token in session.generate(prompt, max_tokens=40)]
    return Answer(tokens, rounds, session.stats)


rules = st.builds(
    lambda temperature, seed: always(
        chooser(Sampling(temperature=temperature, seed=seed), 5)
    ),
    st.sampled_from([0.0, 0.8]),
    st.integers(0, 2**32),
)
prompt_sizes = st.integers(1, 9) | st.sampled_from([210, 230, 250, 254, 470, 500, 510])


def drafters(prompt: Sequence[int], said: Sequence[int], seed: int) -> list[Drafter]:
    """One that is wrong half of the time, and one that copies."""
    script = ScriptedDrafter([*prompt, *said], wrong=0.5, vocab_size=5, seed=seed)
    return [[script], [MaxGram()], [script, MaxGram()]][seed % 3]


def some_prompt(size: int) -> list[int]:
    return np.random.default_rng(size).integers(0, 5, size).tolist()


class TestStrict:
    @given(tables, prompt_sizes, st.integers(1, 12), st.integers(0, 2**32), rules)
    @settings(max_examples=150)
    def test_tokens_are_those_of_one_by_one_decoding(
        self, table: Table, size: int, draft_max: int, seed: int, rule: Rule
    ):
        model, classes = Kernels(5, table, noise=6, seed=seed % 4), Classes()
        classify(model, classes, QUICK)
        prompt = some_prompt(size)
        plain = answer(model, prompt, rule=rule)
        chain = drafters(prompt, plain.tokens, seed)
        counts = [draft_max] * len(chain)
        drafted = answer(model, prompt, chain, counts, Limits(classes, "strict"), rule)
        assert drafted.tokens == plain.tokens

    def test_without_limits_they_are_not(self):
        forked, wide = 0, 0
        for seed in range(20):
            model, classes = Kernels(5, Table(seed, 6), noise=6), Classes()
            classify(model, classes, QUICK)
            plain = answer(model, [1, 2])
            chain = drafters([1, 2], plain.tokens, 3 * seed)
            free = answer(model, [1, 2], chain, 7)
            forked += free.tokens != plain.tokens
            held = answer(model, [1, 2], chain, 7, Limits(classes, "strict"))
            assert held.tokens == plain.tokens
            wide += max(width for _, width in held.rounds) > 1
        assert forked > 10
        assert wide > 10  # and strict is not plain decoding

    @pytest.mark.parametrize("border", [256, 512])
    def test_a_call_that_begins_one_cell_before_a_border_crosses_it(self, border: int):
        """Where one token and more go over to another kernel at the same border."""
        forked = 0
        for seed in range(20):
            model = Kernels(
                5, lambda width, start: int(start == border), noise=6, seed=seed
            )
            classes = Classes()
            classify(model, classes, QUICK)
            assert widths(classes.strict(border - 1)) == {1}
            prompt = some_prompt(border - 1)
            plain = answer(model, prompt)
            script = ScriptedDrafter([*prompt, *plain.tokens])
            held = answer(model, prompt, [script], 3, Limits(classes, "strict"))
            forked += held.tokens != plain.tokens
        assert not forked


temperatures = st.sampled_from([0.0, 0.5, 0.8, 1.5])
exactly = st.builds(
    Sampling,
    temperature=temperatures,
    top_k=st.sampled_from([0, 0, 1, 2, 5, 40]),
    min_p=st.sampled_from([0.0, 0.0, 0.05, 0.3, 1.0]),
    repeat_penalty=st.sampled_from([1.0, 1.0, 1.5, 0.6]),
    repeat_last_n=st.sampled_from([-1, 3]),
    frequency_penalty=st.sampled_from([0.0, 0.4]),
    presence_penalty=st.sampled_from([0.0, -0.5]),
    dry_multiplier=st.sampled_from([0.0, 0.8]),
    logit_bias=st.sampled_from([(), ((0, 1.5), (1, -np.inf))]),
    seed=st.integers(0, 2**64 - 1),
)


def some_row(seed: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and tokens before them."""
    random = np.random.default_rng(seed)
    row = 3 * random.standard_normal(size, dtype=np.float32)
    return row, random.integers(0, size, random.integers(1, 12)).astype(np.int32)


def changes(row: np.ndarray, token: int, most: float, seed: int):
    """Rows in which no logit changes by more than `most`, the worst ones first."""
    random = np.random.default_rng(seed)
    down = np.full(row.size, -most, np.float32)
    for other in np.argsort(-row)[:50].tolist():
        for rest in (-most, 0, most):
            change = np.full(row.size, rest, np.float32)
            change[other], change[token] = most, -most
            yield row + change
    for _ in range(10):
        yield row + np.where(random.random(row.size) < 0.5, down, -down)
        yield row + random.uniform(-most, most, row.size).astype(np.float32)


class TestMargin:
    @given(
        st.integers(0, 2**32),
        st.sampled_from([2, 3, 5, 20, 600]),
        exactly,
        st.floats(0, 1),
    )
    @settings(max_examples=300)
    def test_smaller_changes_of_all_logits_change_no_choice(
        self, seed: int, size: int, sampling: Sampling, share: float
    ):
        row, tokens = some_row(seed, size)
        choose = SamplerChain(sampling, {}, None, 0)
        token, margin = choose(row, tokens), choose.margin(row, tokens)
        assert margin >= 0
        most = min(margin, 8.0) / 2 * share - 1e-4
        if most > 0:
            for changed in changes(row, token, most, seed):
                assert choose(changed, tokens) == token

    @given(st.integers(0, 2**32), st.integers(2, 50), temperatures)
    def test_a_larger_one_may(self, seed: int, size: int, temperature: float):
        row, tokens = some_row(seed, size)
        choose = chooser(Sampling(temperature=temperature, seed=seed), size)
        token, most = choose(row, tokens), choose.margin(row, tokens) / 2 + 1e-3
        said = {choose(changed, tokens) for changed in changes(row, token, most, seed)}
        assert said != {token}

    @pytest.mark.parametrize(
        "sampling",
        [
            Sampling(temperature=0.8, top_k=1),
            Sampling(temperature=0.8, top_k=5),
            Sampling(temperature=0.8, min_p=0.05),
            Sampling(temperature=0.8, min_p=1.0),
            Sampling(temperature=0.8, top_k=40, min_p=0.05, repeat_penalty=1.1),
        ],
    )
    def test_truncation_leaves_a_margin(self, sampling: Sampling):
        choose = SamplerChain(sampling, {}, None, 0)
        margins = [choose.margin(*some_row(seed, 100)) for seed in range(100)]
        assert np.mean(np.array(margins) > 0.05) > 0.9

    @given(
        st.integers(0, 2**32),
        st.integers(1, 400),
        st.sampled_from(
            [
                Sampling(temperature=0.8, top_p=0.9, top_k=40, min_p=0.05),
                Sampling(temperature=0.8, typical_p=0.3),
                Sampling(typical_p=0.3),
                Sampling(temperature=0.8, xtc_probability=1.0, xtc_threshold=0.05),
                Sampling(xtc_probability=1.0, xtc_threshold=0.05),
                Sampling(temperature=0.8, top_n_sigma=1.0),
            ]
        ),
    )
    def test_no_margin_is_negative(self, seed: int, size: int, sampling: Sampling):
        row, tokens = some_row(seed, size)
        assert SamplerChain(sampling, {}, None, 0).margin(row, tokens) >= 0

    @pytest.mark.parametrize("temperature", [0.0, 0.8])
    def test_survivors_may_be_far_down(self, temperature: float):
        """The typical tokens here are less probable than 400 others."""
        row = np.zeros(4400, np.float32)
        row[:400] = 1.0
        choose = SamplerChain(
            Sampling(temperature=temperature, typical_p=0.001), {}, None, 0
        )
        tokens = np.zeros(1, np.int32)
        assert choose(row, tokens) >= 400
        assert choose.margin(row, tokens) == 0  # all others are as typical

    @given(st.integers(0, 2**32), st.integers(2, 50), st.integers(0, 9))
    def test_greedy_asks_for_the_gap_of_the_two_best(self, seed, size, ties: int):
        row, tokens = some_row(seed, size)
        row[: min(ties, size)] = row.max()
        best = sorted(row.tolist())[-2:]
        assert greedy.margin(row, tokens) == pytest.approx(best[1] - best[0])

    def test_a_token_far_outside_with_much_luck_counts(self):
        """It would come in behind the first and win."""
        row = np.full(4000, 8.9, np.float32)
        row[:300], row[0], row[1] = 9.0, 20.0, 10.0
        tokens = np.zeros(1, np.int32)
        for seed in range(60):
            choose = SamplerChain(
                Sampling(temperature=5.0, top_k=2, seed=seed), {}, None, 0
            )
            token, most = choose(row, tokens), choose.margin(row, tokens) / 2 - 1e-4
            luck = noise.gumbel(noise.key(seed, 1), np.arange(row.size))
            change = np.full(row.size, -most, np.float32)
            change[300 + luck[300:].argmax()] = most
            assert choose(row + change, tokens) == token

    def test_what_xtc_drops_does_not_count_as_chosen(self):
        row = np.log(np.array([0.6, 0.3, 0.05, 0.05], np.float32))
        choose = SamplerChain(
            Sampling(xtc_probability=1.0, xtc_threshold=0.2), {}, None, 0
        )
        tokens = np.zeros(1, np.int32)
        assert choose(row, tokens) == 1
        # Below 0.2 the second would stay away from the first, which would be chosen.
        assert choose.margin(row, tokens) < math.log(0.3 / 0.2)


class TestTargetsThatComputeAgain:
    def classes(self, *widths: int) -> Classes:
        found = Classes()
        every = frozenset(range(2, 33))
        for depth, last in ((24, 60), (255, 290), (384, 420), (511, 560)):
            found.add(depth, last, Finding(frozenset(widths), every - {*widths}))
        return found

    def test_smaller_widths_have_to_be_exact_too(self):
        classes = self.classes(2, 3, 5, 8)
        free, some, never = (
            Limits(classes, "strict", removable=removable) for removable in (None, 5, 0)
        )

        def widths(limits: Limits) -> list[int]:
            return (np.flatnonzero(limits.allowed(24)) + 1).tolist()

        assert widths(free) == [1, 2, 3, 5, 8]
        assert widths(some) == [1, 2, 3, 5]  # up to five tokens are removed
        assert widths(never) == [1, 2, 3]
        assert never.fits(24, 8) == 3

    def test_beyond_the_steady_depth_nothing_is_strict(self):
        classes = self.classes(2, 3, 4)
        auto = Limits(classes, "auto", keeps=lambda allowed, depth: 1.0, steady=256)
        assert auto.tier(24) == "strict"
        assert auto.tier(300) == "numeric"
        assert auto.describe_up_to(600).startswith("strict (widths 2-4) to 256")
        strict = Limits(classes, "strict", steady=256)
        assert strict.fits(24, 4) == 4
        assert strict.fits(300, 4) == 1
