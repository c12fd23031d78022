"""Cascade rules: the law of each rule, and that its choices ignore the drafts.

The laws are computed here from the formulas of the paper, on tables of three tokens.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_distribution import fits

from edgecs.core.context import Context
from edgecs.core.draft import Draft, Request
from edgecs.decoding.beside import Beside, RowKeeper
from edgecs.decoding.cascade import NamedModel, stack
from edgecs.decoding.kmatrix import KMatrix
from edgecs.drafters.maxgram import MaxGram
from edgecs.errors import ConfigError, ModelError
from edgecs.sampling.cascade_rules import CascadeRule
from edgecs.sampling.chain import always, chooser, greedy
from edgecs.sampling.settings import Sampling
from edgecs.session.session import Session
from edgecs.session.stats import Mark
from edgecs.testing.fakes import CachingModel, Endless, ScriptedDrafter, TableModel

VOCAB, DRAWS = 3, 2000
TARGET, SMALL = TableModel(VOCAB, 5, sharpness=1.0), TableModel(VOCAB, 9, sharpness=1.0)
PROMPT = [0, 1, 2, 1]
# With these alphas each rule sometimes uses either model on the rows above.
RULES = [
    CascadeRule("chow", 0.45),
    CascadeRule("diff", 0.05),
    CascadeRule("opt", 0.3),
    CascadeRule("v1", 0.1),
    CascadeRule("v2", 0.2),
    CascadeRule("v3", 0.4),
]
NAMES = [str(rule) for rule in RULES]


def softmax(row, temperature: float = 1.0) -> np.ndarray:
    if not temperature:
        return np.eye(len(row))[int(np.argmax(row))]
    weights = np.exp(np.asarray(row, float) / temperature)
    return weights / weights.sum()


def mixture(rule: CascadeRule, temperature: float, row, small) -> np.ndarray:
    """The law pi of a rule, from the paper's formulas."""
    p, q = softmax(row, temperature), softmax(small, temperature)
    sure, best = softmax(row), softmax(small)
    a, most = rule.alpha, softmax(row).max()
    if rule.name in ("chow", "diff", "opt"):
        least = {
            "chow": 1 - a,
            "diff": most - a,
            "opt": most - a * np.abs(p - q).sum() / 2,
        }[rule.name]
        return q if best.max() >= least else p
    inside = {
        "v1": best >= most - a,
        "v2": sure >= most - a,
        "v3": sure >= (1 - a) * most,
    }[rule.name]
    return q * inside + (1 - q[inside].sum()) * p


def joint(rule: CascadeRule | None, temperature: float, steps: int = 3):
    """Probability of every continuation; None: of the target alone."""
    law = {(): 1.0}
    for _ in range(steps):
        longer = {}
        for path, mass in law.items():
            rows = TARGET.law([*PROMPT, *path]), SMALL.law([*PROMPT, *path])
            one = (
                mixture(rule, temperature, *rows)
                if rule
                else softmax(rows[0], temperature)
            )
            for token, share in enumerate(one.tolist()):
                if share:
                    longer[(*path, token)] = mass * share
        law = longer
    return law


def session_of(rule, target, small, matrix: str, choose, *, others=()) -> Session:
    keeper = RowKeeper(small)
    k = KMatrix.parse(matrix)
    drafters = stack([NamedModel("small", keeper)], MaxGram(), k)
    return Session(
        Beside(target, keeper),
        Endless(),
        [*others, *drafters],
        draft_max=[*(2 for _ in others), *k.counts(0)],
        rule=always(choose),
        mixes=rule,
        mark=Mark(f"cascade rule {rule}, small", False),
    )


def drawn(rule: CascadeRule, temperature: float) -> Counter:
    rows: dict[tuple, tuple] = {}
    counts = Counter()
    for seed in range(DRAWS):
        choose = chooser(Sampling(temperature=temperature, seed=seed), VOCAB)
        path: tuple[int, ...] = ()
        for _ in range(3):
            tokens = np.array([*PROMPT, *path], np.int32)
            if path not in rows:
                rows[path] = TARGET.law(tokens), SMALL.law(tokens)
            path = (*path, rule.choose(choose, *rows[path], tokens))
        counts[path] += 1
    return counts


@pytest.mark.parametrize("temperature", [0.7, 1.0])
@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_three_tokens_follow_the_law_of_the_rule(rule, temperature: float):
    counts = drawn(rule, temperature)
    assert fits(counts, joint(rule, temperature))
    assert not fits(counts, joint(None, temperature))  # it is not the target's law
    assert not fits(counts, joint(rule, temperature * 1.5))


def test_drafted_tokens_follow_the_law_too():
    """The first call has no draft; the second and third positions are drafted."""
    rule, counts = RULES[-1], Counter()
    with session_of(rule, TARGET, SMALL, "2,1;0,1", greedy) as session:
        for seed in range(DRAWS):
            choose = chooser(Sampling(temperature=1.0, seed=seed), VOCAB)
            stream = session.generate(PROMPT, max_tokens=3, rule=always(choose))
            counts[tuple(token.id for token in stream)] += 1
    assert fits(counts, joint(rule, 1.0))
    assert not fits(counts, joint(None, 1.0))


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_greedy_answers_are_the_only_ones_that_the_law_allows(rule):
    # At temperature 0 pi of v1 to v3 is a point, as p and q are.
    ((expected, mass),) = joint(rule, 0.0).items()
    assert mass == pytest.approx(1.0)
    with session_of(rule, TARGET, SMALL, "2,1;0,1", chooser(Sampling(), VOCAB)) as s:
        assert tuple(t.id for t in s.generate(PROMPT, max_tokens=3)) == expected


def alone(rule, target, small, choose, prompt, n: int) -> list[int]:
    """Tokens of the rule, one by one, without any of edgecs but the rule."""
    tokens = np.array(prompt, np.int32)
    for _ in range(n):
        token = rule.choose(choose, target.law(tokens), small.law(tokens), tokens)
        tokens = np.append(tokens, np.int32(token))
    return tokens[len(prompt) :].tolist()


rules = st.one_of(
    st.builds(CascadeRule, st.sampled_from(["chow", "v3"]), st.floats(0, 1)),
    st.builds(CascadeRule, st.sampled_from(["diff", "v1", "v2"]), st.floats(-1, 1)),
    st.builds(CascadeRule, st.just("opt"), st.floats(-3, 3)),
)
samplings = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.7, 1.0]),
    top_k=st.sampled_from([0, 0, 2]),
    top_p=st.sampled_from([1.0, 0.9]),
    repeat_penalty=st.sampled_from([1.0, 1.3]),
    xtc_probability=st.sampled_from([0.0, 0.5]),
    seed=st.integers(0, 2**64 - 1),
)


@given(data=st.data(), rule=rules, sampling=samplings)
@settings(max_examples=60, deadline=None)
def test_an_answer_does_not_depend_on_what_is_drafted(data, rule, sampling):
    vocab = data.draw(st.integers(3, 7))
    target, small = CachingModel(vocab, 1), CachingModel(vocab, 2)
    choose = chooser(sampling, vocab)
    prompt = data.draw(st.lists(st.integers(0, vocab - 1), min_size=1, max_size=5))
    expected = alone(rule, target, small, choose, prompt, 24)
    wrong = data.draw(st.sampled_from([0.0, 0.3, 1.0]))
    script = ScriptedDrafter(
        [*prompt, *expected], wrong=wrong, vocab_size=vocab, name="script"
    )
    others = [script] if data.draw(st.booleans()) else []
    rows = [data.draw(st.integers(0, 4)) for _ in range(3)]
    matrix = f"{rows[0]},{rows[1]};0,{rows[2]}"
    with session_of(rule, target, small, matrix, choose, others=others) as session:
        # A cut-off, and a second turn that goes on from the cells of the first.
        cut = data.draw(st.integers(1, 23))
        first = [t.id for t in session.generate(prompt, max_tokens=cut)]
        assert first == expected[:cut]
        rest = session.generate([*prompt, *first], max_tokens=24 - cut)
        assert [t.id for t in rest] == expected[cut:]
        assert session.stats.notice == (
            f"NOT the target's answer (cascade rule {rule}, small)"
        )


@given(sampling=samplings, matrix=st.sampled_from(["3,0;0,0", "2,2;0,2", "0,3;0,0"]))
@settings(max_examples=30, deadline=None)
def test_without_a_rule_the_ids_are_the_targets(sampling, matrix: str):
    target, small = CachingModel(5, 1), CachingModel(5, 2)
    choose = chooser(sampling, 5)
    k = KMatrix.parse(matrix)
    drafters = stack([NamedModel("small", small)], MaxGram(), k)
    rule = always(choose)
    with Session(target, Endless(), drafters, draft_max=k.counts(0), rule=rule) as s:
        said = [token.id for token in s.generate([1], max_tokens=30)]
        assert s.stats.notice is None
    assert said == target.alone([1], 30, choose)


def test_alpha_0_is_not_off():
    """V3 with alpha 0 accepts the target's best token more often than p does."""
    row, small = np.log([0.5, 0.3, 0.2]), np.log([0.6, 0.2, 0.2])
    law = mixture(CascadeRule("v3", 0.0), 1.0, row, small)
    assert law[0] == pytest.approx(0.6 + 0.4 * 0.5)


def test_a_grammar_that_forbids_all_of_the_small_models_tokens_leaves_the_target():
    class Only:
        def allows(self, answer, token):
            return token == 2

        def mask(self, row, answer):
            return np.where(np.arange(row.size) == 2, row, np.float32(-np.inf))

    row = np.zeros(3, np.float32)
    small = np.array([0, 0, -np.inf], np.float32)
    tokens = np.zeros(1, np.int32)
    for temperature in (0.0, 1.0):
        choose = chooser(Sampling(temperature=temperature), 3, mask=Only())
        for rule in RULES:
            assert rule.choose(choose, row, small, tokens) == 2


def test_the_small_model_computes_no_row_twice():
    calls = []

    class Counted(TableModel):
        def score(self, requests):
            calls.append((len(requests[0].context), len(requests[0].draft)))
            return super().score(requests)

    small = Counted(5, 1)
    choose = chooser(Sampling(), 5)
    rule = CascadeRule("chow", 1.0)  # accepts all that the small model says
    with session_of(rule, TableModel(5, 2), small, "3,0;0,0", choose) as session:
        said = [token.id for token in session.generate([1], max_tokens=9)]
    assert said == small.greedy([1], 9)
    # The prompt; three drafted tokens and the one after them; the last ones.
    assert calls == [(n, 0) for n in range(1, 10)]


def test_a_row_keeper_computes_what_a_cheaper_drafter_wrote_in_one_call():
    model = TableModel(5, 1)
    keeper = RowKeeper(model)
    context = Context([1, 2])
    keeper.score([Request(context)])
    draft = Draft.chain([3, 4, 0], "mag")
    rows = keeper.rows(Request(context, draft))
    wanted = [[1, 2], [1, 2, 3], [1, 2, 3, 4], [1, 2, 3, 4, 0]]
    np.testing.assert_array_equal(rows, [model.law(prefix) for prefix in wanted])


def test_a_session_with_a_rule_holds_both_models():
    target, small = TableModel(5, 2), TableModel(5, 1)
    keeper = RowKeeper(small)
    rule = CascadeRule("v3", 0.5)
    with Session(Beside(target, keeper), Endless(), mixes=rule):
        for model in (target, small):
            with pytest.raises(ModelError, match="in use"):
                Session(model, Endless())
    Session(small, Endless()).close()


@pytest.mark.parametrize(
    ("name", "alpha", "message"),
    [
        ("v4", 0.5, "no cascade rule is named 'v4': give chow, diff, opt, v1, v2, v3"),
        ("v3", 1.5, "rule v3 must be a number between 0 and 1, got 1.5"),
        ("diff", -2, "between -1 and 1, got -2"),
        ("chow", float("nan"), "between 0 and 1, got nan"),
        ("opt", float("inf"), "rule opt must be a number, got inf"),
    ],
)
def test_bad_rules_are_refused(name: str, alpha: float, message: str):
    with pytest.raises(ConfigError, match=message):
        CascadeRule(name, alpha)
