"""Ratio rules give the target's law with any drafter; blocks accept more tokens."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecs.core.context import Context
from edgecs.core.draft import Draft
from edgecs.decoding.beside import RowKeeper
from edgecs.decoding.cascade import NamedModel, stack
from edgecs.decoding.kmatrix import KMatrix
from edgecs.decoding.ratio import Position, RatioRule, chances, weights
from edgecs.drafters.maxgram import MaxGram
from edgecs.errors import ConfigError, ModelError
from edgecs.runtime.recipe import Recipe
from edgecs.sampling.cascade_rules import CascadeRule
from edgecs.sampling.chain import always, chooser, greedy
from edgecs.sampling.settings import Sampling
from edgecs.session.session import Session
from edgecs.session.stats import Mark
from edgecs.testing.fakes import CachingModel, Endless, ScriptedDrafter, TableModel

VOCAB, DRAWS, STEPS = 3, 1000, 3


class Tabled(TableModel):
    """A TableModel that computes no row twice."""

    def __init__(self, seed: int):
        super().__init__(VOCAB, seed, sharpness=1.5)
        self.known: dict[bytes, np.ndarray] = {}

    def law(self, prefix):
        name = np.asarray(prefix, np.int32).tobytes()
        if name not in self.known:
            self.known[name] = super().law(prefix)
        return self.known[name]


TARGET, SMALL = Tabled(5), Tabled(9)
PROMPT = [0, 1, 2, 1, 0, 1]
BOTH = pytest.mark.parametrize("blocks", [False, True])


def law_of(model: TableModel, temperature: float) -> dict[tuple[int, ...], float]:
    """Probability of every continuation of STEPS tokens."""
    law = {(): 1.0}
    for _ in range(STEPS):
        longer = {}
        for path, mass in law.items():
            weights = np.exp(model.law([*PROMPT, *path]).astype(float) / temperature)
            for token, share in enumerate((weights / weights.sum()).tolist()):
                longer[(*path, token)] = mass * share
        law = longer
    return law


def apart(counts: Counter, law: dict[tuple[int, ...], float]) -> float:
    """Chi-square over its expectation, in standard deviations."""
    cells = [(counts[path], p * counts.total()) for path, p in law.items()]
    large = [(seen, wanted) for seen, wanted in cells if wanted >= 5]
    few = [cell for cell in cells if cell[1] < 5]
    if few:
        large.append((sum(s for s, _ in few), sum(w for _, w in few)))
    freedom = len(large) - 1
    statistic = sum((seen - wanted) ** 2 / wanted for seen, wanted in large)
    return (statistic - freedom) / (2 * freedom) ** 0.5


def session_of(target, small, matrix: str, *, blocks: bool, others=(), hide=False):
    keeper = RowKeeper(small)
    k = KMatrix.parse(matrix)
    drafters = stack([NamedModel("small", keeper)], MaxGram(), k)
    return Session(
        target,
        Endless(),
        [*others, *drafters],
        draft_max=[*(1 for _ in others), *k.counts(0)],
        ratio=RatioRule({"other" if hide else "small": keeper}, blocks=blocks),
        mark=Mark("accept rejection", True),
    )


def drawn(session: Session, temperature: float) -> Counter:
    counts = Counter()
    with session:
        for seed in range(DRAWS):
            choose = chooser(Sampling(temperature=temperature, seed=seed), VOCAB)
            stream = session.generate(PROMPT, max_tokens=STEPS, rule=always(choose))
            counts[tuple(token.id for token in stream)] += 1
        assert session.stats.notice is not None
    return counts


@BOTH
@pytest.mark.parametrize("matrix", ["3,0;0,0", "1,2;0,2"])
def test_tokens_follow_the_targets_law(blocks: bool, matrix: str):
    counts = drawn(session_of(TARGET, SMALL, matrix, blocks=blocks), 1.0)
    assert apart(counts, law_of(TARGET, 1.0)) < 5
    assert apart(counts, law_of(TARGET, 0.7)) > 10
    assert apart(counts, law_of(SMALL, 1.0)) > 10


@BOTH
def test_a_temperature_and_a_script_below_keep_the_law(blocks: bool):
    script = ScriptedDrafter([*PROMPT, 0, 1, 2, 0, 1], name="script")
    session = session_of(TARGET, SMALL, "2,0;0,0", blocks=blocks, others=[script])
    counts = drawn(session, 0.7)
    assert apart(counts, law_of(TARGET, 0.7)) < 5
    assert apart(counts, law_of(TARGET, 1.0)) > 10


def test_a_token_whose_law_is_not_stated_counts_as_looked_up():
    counts = drawn(session_of(TARGET, SMALL, "2,0;0,0", blocks=False, hide=True), 1.0)
    assert apart(counts, law_of(TARGET, 1.0)) < 5


def test_the_wrong_law_of_a_draft_would_show():
    """The control: if all drafted tokens were said to come from another law."""

    class Wrong(RowKeeper):
        def row(self, tokens):
            return np.zeros(VOCAB, np.float32)

    keeper = Wrong(SMALL)
    drafters = stack([NamedModel("small", keeper)], MaxGram(), KMatrix.parse("3,0;0,0"))
    ratio = RatioRule({"small": keeper}, blocks=False)
    how = {"draft_max": (3, 0), "ratio": ratio, "mark": Mark("wrong", True)}
    counts = drawn(Session(TARGET, Endless(), drafters, **how), 1.0)
    assert apart(counts, law_of(TARGET, 1.0)) > 10


@given(data=st.data(), blocks=st.booleans())
@settings(max_examples=25, deadline=None)
def test_greedy_answers_are_those_without_drafts(data, blocks: bool):
    target, small = CachingModel(5, 1), CachingModel(5, 2)
    counts = [data.draw(st.integers(0, 4)) for _ in range(3)]
    counts[0] += not any(counts[:2])
    matrix = f"{counts[0]},{counts[1]};0,{counts[2]}"
    with session_of(target, small, matrix, blocks=blocks) as session:
        said = [t.id for t in session.generate([1], max_tokens=30)]
        assert session.stats.notice is None  # one law, one answer
        stats = session.stats
    assert said == target.alone([1], 30, greedy)
    assert stats.tokens == 1 + stats.accepted + stats.rounds


@given(data=st.data(), blocks=st.booleans())
@settings(max_examples=25, deadline=None)
def test_answers_end_where_they_must(data, blocks: bool):
    """With end tokens, cut-offs and a second turn, on cells that were left behind."""

    class Ending(Endless):
        def __init__(self):
            self.ends = frozenset({0})

    target, small = CachingModel(4, 1), CachingModel(4, 2)
    keeper = RowKeeper(small)
    k = KMatrix.parse("3,2;0,2")
    choose = chooser(Sampling(temperature=1.0, seed=data.draw(st.integers(0, 999))), 4)
    drafters = stack([NamedModel("small", keeper)], MaxGram(), k, ends={0})
    ratio = RatioRule({"small": keeper}, blocks=blocks)
    how = {"draft_max": (3, 2), "rule": always(choose), "ratio": ratio}
    with Session(target, Ending(), drafters, **how) as session:
        context = [1]
        for _ in range(3):
            most = data.draw(st.integers(1, 12))
            said = [t.id for t in session.generate(context, max_tokens=most)]
            assert 0 not in said[:-1]
            assert len(said) == most or said[-1] == 0
            context += [*said, 1]


rows = st.lists(st.floats(0.01, 1), min_size=3, max_size=3).map(
    lambda weights: np.array(weights) / sum(weights)
)


three = st.lists(rows, min_size=3, max_size=3)


@given(ps=three, qs=three)
@settings(deadline=None)
def test_blocks_accept_at_least_as_many_tokens(ps, qs):
    tokens = blocks = 0.0
    for path in itertools.product(range(3), repeat=3):
        at = [Position(x, p, q, 0) for x, p, q in zip(path, ps, qs, strict=True)]
        drawn = np.prod([one.q[one.token] for one in at])
        tokens += drawn * np.cumprod([min(1.0, one.ratio) for one in at]).sum()
        stays = np.cumprod([1 - c for c in reversed(chances(at))])[::-1]
        blocks += drawn * (1 - stays).sum()
    assert blocks >= tokens - 1e-9


def test_the_rule_by_blocks_has_a_worked_example():
    """A product of ratios carries credit: 2 x 0.5 is accepted as a whole."""
    p = np.array([[0.8, 0.2], [0.3, 0.7]])
    q = np.array([[0.4, 0.6], [0.6, 0.4]])
    at = [Position(0, p[0], q[0], 0), Position(0, p[1], q[1], 0)]
    assert weights(at) == [1.0, 1.0, 0.5]
    assert chances(at) == [1.0, 0.5]
    at = [Position(1, p[0], q[0], 0), Position(1, p[1], q[1], 0)]
    assert weights(at) == pytest.approx([1.0, 1 / 3, 7 / 12])
    rest = 0.0 + max(0.0, 0.7 / 3 - 0.4)
    assert chances(at) == pytest.approx([rest / (rest + 2 / 3), 7 / 12])


def test_the_models_of_drafters_are_held():
    small = TableModel(5, 2)
    with session_of(TableModel(5, 1), small, "2,0;0,0", blocks=False), small_in_use():
        Session(small, Endless())
    Session(small, Endless()).close()


def small_in_use():
    return pytest.raises(ModelError, match="in use")


def test_drafts_keep_their_writers():
    drawn = Draft.chain([1, 2], "mag", None, ("small", "small"))
    looked = Draft.chain([0], "mag")
    assert drawn.then(looked).writers == ("small", "small", "")
    assert looked.then(drawn).clip(2).writers == ("", "small")
    assert looked.then(looked).writers == ()
    inner = stack([NamedModel("small", SMALL)], MaxGram(), KMatrix.parse("2,0;0,2"))[0]
    assert inner.propose(Context(PROMPT), 3, greedy).writers == ("small",) * 3


def test_a_recipe_takes_one_rule():
    rule = CascadeRule("v3", 0.5)
    with pytest.raises(ConfigError, match="by its own law: leave accept block out"):
        Recipe("m", drafts=("d",), cascade=rule, accept="block")
