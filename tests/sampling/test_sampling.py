"""The sampler chain against the plainest code that says the same."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecs.errors import ConfigError, ModelError, NoNumbers
from edgecs.sampling import filters, noise, penalties
from edgecs.sampling.chain import SamplerChain, chooser, greedy
from edgecs.sampling.settings import Sampling

INF = float("inf")


def plain_law(
    row: list[float], tokens: list[int], s: Sampling, *, xtc: bool
) -> dict[int, float]:
    """Token -> probability, by the definitions, one candidate at a time."""
    logits = {v: float(x) for v, x in enumerate(row)}
    for token, bias in s.logit_bias:
        logits[token] += bias
    seen = tokens if s.repeat_last_n < 0 else tokens[-s.repeat_last_n or len(tokens) :]
    for token in set(seen) if s.penalises else ():
        x = logits[token]
        x = x * s.repeat_penalty if x <= 0 else x / s.repeat_penalty
        x -= seen.count(token) * s.frequency_penalty + s.presence_penalty
        logits[token] = x
    if s.dries:
        for token, length in plain_repetitions(tokens, s).items():
            excess = length - s.dry_allowed_length
            logits[token] -= s.dry_multiplier * s.dry_base**excess
    logits = {v: x for v, x in logits.items() if x > -INF}
    if s.top_n_sigma > 0:
        values = list(logits.values())
        mean = sum(values) / len(values)
        spread = math.sqrt(sum((x - mean) ** 2 for x in values) / len(values))
        least = max(values) - s.top_n_sigma * spread
        logits = {v: x for v, x in logits.items() if x >= least}
    order = sorted(logits, key=lambda v: (-logits[v], v))
    if s.top_k:
        order = order[: s.top_k]
    if s.typical_p < 1:
        p = softmax(order, logits)
        entropy = -sum(x * math.log(x) for x in p.values())
        near = sorted(order, key=lambda v: abs(-math.log(p[v]) - entropy))
        kept = set(until(near, p, lambda mass: mass > s.typical_p))
        order = [v for v in order if v in kept]
    if s.top_p < 1:
        p = softmax(order, logits)
        order = until(order, p, lambda mass: mass >= s.top_p)
    if s.min_p > 0:
        least = logits[order[0]] + math.log(s.min_p)
        order = [v for v in order if logits[v] >= least]
    if xtc:
        p = softmax(order, logits)
        above = [v for v in order if p[v] >= s.xtc_threshold]
        order = order[max(0, len(above) - 1) :]
    if not s.temperature:
        return {order[0]: 1.0}
    return softmax(order, {v: x / s.temperature for v, x in logits.items()})


def softmax(order: list[int], logits: dict[int, float]) -> dict[int, float]:
    largest = max(logits[v] for v in order)
    weights = {v: math.exp(logits[v] - largest) for v in order}
    return {v: w / sum(weights.values()) for v, w in weights.items()}


def until(order: list[int], p: dict[int, float], enough) -> list[int]:
    mass, kept = 0.0, []
    for v in order:
        kept.append(v)
        mass += p[v]
        if enough(mass):
            break
    return kept


def plain_repetitions(tokens: list[int], s: Sampling) -> dict[int, int]:
    """Token -> length of the longest repetition it would prolong; token 0 breaks."""
    if s.dry_last_n >= 0:
        tokens = tokens[max(0, len(tokens) - s.dry_last_n) :]
    found: dict[int, int] = {}
    for end in range(len(tokens) - 1):
        length = 0
        while (
            length <= end
            and tokens[end - length] == tokens[-1 - length]
            and tokens[-1 - length] != 0
        ):
            length += 1
        if length >= s.dry_allowed_length:
            after = tokens[end + 1]
            found[after] = max(length, found.get(after, 0))
    found.pop(0, None)
    return found if len(tokens) > s.dry_allowed_length else {}


values = st.floats(-9, 9, width=32).map(lambda x: round(x, 2))
samplings = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.6, 1.0, 2.0]),
    top_k=st.sampled_from([0, 1, 3, 5]),
    top_p=st.sampled_from([1.0, 0.91, 0.37]),
    min_p=st.sampled_from([0.0, 0.053, 0.71]),
    typical_p=st.sampled_from([1.0, 0.63]),
    top_n_sigma=st.sampled_from([-1.0, 0.83]),
    xtc_probability=st.sampled_from([0.0, 0.5]),
    xtc_threshold=st.sampled_from([0.07, 0.31]),
    repeat_penalty=st.sampled_from([1.0, 1.37]),
    repeat_last_n=st.sampled_from([-1, 0, 3, 64]),
    frequency_penalty=st.sampled_from([0.0, 0.43]),
    presence_penalty=st.sampled_from([0.0, -0.57]),
    dry_multiplier=st.sampled_from([0.0, 0.83]),
    dry_allowed_length=st.integers(1, 3),
    dry_last_n=st.sampled_from([-1, 6]),
    logit_bias=st.sampled_from([(), ((0, 1.57), (2, -INF))]),
    seed=st.integers(0, 2**64 - 1),
)


@given(
    row=st.lists(values, min_size=4, max_size=9, unique=True),
    tokens=st.lists(st.integers(0, 3), min_size=1, max_size=14),
    s=samplings,
)
@settings(max_examples=300)
def test_the_law_is_the_definitions(row: list[float], tokens: list[int], s: Sampling):
    chain = SamplerChain(s, {0: [()]}, None, 0)
    ids, logits = np.array(tokens, np.int32), np.array(row, np.float32)
    key = noise.key(s.seed, len(tokens))
    law = chain.law(logits, ids)
    xtc = noise.coin(key) < s.xtc_probability
    plain = plain_law(logits.tolist(), tokens, s, xtc=xtc)
    assert set(np.flatnonzero(law)) == set(plain)
    np.testing.assert_allclose([law[v] for v in plain], list(plain.values()), rtol=1e-5)
    # And the choice is the law's best under the noise that everyone can look up.
    scores = np.full(len(row), -INF)
    some = np.flatnonzero(law)
    scores[some] = np.log(law[some]) + noise.gumbel(key, some)
    assert chain(logits, ids) == (scores.argmax() if s.temperature else law.argmax())
    assert np.array_equal(logits, np.array(row, np.float32))  # nothing was changed


@given(
    st.integers(0, 999), st.integers(1, 700), st.sampled_from([40, 1000, 9000, 20_001])
)
def test_top_is_a_sorted_prefix(seed: int, k: int, size: int):
    random = np.random.default_rng(seed)
    row = random.standard_normal(size).astype(np.float32).round(seed % 3)  # with ties
    row[random.random(size) < 0.1] = -np.inf
    found = filters.top(row, k)
    order = np.lexsort((np.arange(size), -row))
    expected = order[: min(k, np.isfinite(row).sum())]
    assert found.ids.tolist() == expected.tolist()
    assert found.logits.tolist() == row[expected].tolist()


@given(st.integers(0, 9999), st.floats(0.05, 3.0), st.floats(0.5, 12))
def test_without_truncation_every_token_competes(seed: int, t: float, spread: float):
    size = 3000
    row = np.random.default_rng(seed).standard_normal(size) * spread
    row = row.astype(np.float32)
    tokens = np.zeros(seed % 50, np.int32)
    key = noise.key(seed, tokens.size)
    scores = row.astype(float) / t + noise.gumbel(key, np.arange(size))
    choose = chooser(Sampling(temperature=t, seed=seed), size)
    assert choose(row, tokens) == scores.argmax()


@given(st.integers(0, 9999), st.floats(0.05, 0.999), st.sampled_from([0.3, 1.0, 4.0]))
def test_top_p_of_a_wide_row_sorts_as_far_as_it_takes(seed, p, spread):
    row = np.random.default_rng(seed).standard_normal(4000).astype(np.float32) * spread
    row = row.astype(np.float32)
    found = filters.top_p_of_row(row, p)
    every = filters.top_p(filters.top(row, row.size), p)
    # The two sums differ in their last bits, which a few of many small ones hang on.
    n = min(found.ids.size, every.ids.size)
    assert max(found.ids.size, every.ids.size) - n <= 1 + n // 100
    assert np.array_equal(found.ids[:n], every.ids[:n])


def test_noise_is_what_it_always_was():
    assert noise.key(7, 11) == 0xE9A05A4D6EF14D70
    words = noise.words(noise.key(7, 11), noise.counters(np.arange(3)))
    assert [hex(w) for w in words.tolist()] == GOLDEN_WORDS
    drawn = noise.gumbel(noise.key(7, 11), np.array([0, 1, 2, 151_935]))
    np.testing.assert_allclose(drawn, GOLDEN_NOISE, rtol=1e-12)
    assert noise.coin(noise.key(7, 11)) == GOLDEN_COIN


GOLDEN_WORDS = ["0xf87fd3de4476a4b5", "0x7fdfefecde917d76", "0xaedbee11fb99cba7"]
GOLDEN_NOISE = [
    3.515352833134589,
    0.3651015794580228,
    0.964439161719729,
    0.046109333195929046,
]
GOLDEN_COIN = 0.37005592313739605


@given(st.integers(0, 2**64 - 1), st.floats(-3, 30))
def test_a_word_below_the_least_has_too_little_noise(key: int, floor: float):
    words = noise.words(key, noise.counters(np.arange(2000)))
    enough = noise.of_words(words) >= floor
    assert np.all(words[enough] >= np.uint64(noise.least_word(floor)))


def test_pieces_do_not_show_in_the_words():
    counters = noise.counters(np.arange(20_000))
    whole = noise.words(5, counters)
    apart = [noise.words(5, counters[i : i + 1])[0] for i in (0, 8191, 8192, 19_999)]
    assert whole[[0, 8191, 8192, 19_999]].tolist() == [int(w) for w in apart]


def test_a_sequence_breaker_may_span_tokens():
    pieces = [b"a", b"x\n", b"foo<", b"END", b">", b"<EN"]
    encode = {"END>": [3, 4], "D>": [7, 4]}.__getitem__
    breakers = penalties.sequence_breakers(["\n", "<END>"], pieces, encode)
    assert breakers == {1: [()], 2: [(3, 4)], 5: [(7, 4)]}
    # <EN, D> breaks: only what comes after it counts as a repetition.
    tokens = np.array([9, 8, 9, 8, 5, 7, 4, 9, 8], np.int32)
    row = np.zeros(10, np.float32)
    penalties.dry(row, tokens, breakers, multiplier=1, base=2, allowed=2)
    assert {t: row[t] for t in np.flatnonzero(row).tolist()} == {9: -1, 5: -1}
    penalties.dry(row, tokens[:7], breakers, multiplier=1, base=2, allowed=1)
    assert row[9] == -1  # the text ends with the breaker: nothing is repeated


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"top_k": -1},
        {"top_p": 1.01},
        {"min_p": -0.2},
        {"typical_p": 0.0},
        {"xtc_probability": 2.0},
        {"repeat_penalty": 0.0},
        {"repeat_last_n": -2},
        {"dry_allowed_length": 0},
        {"frequency_penalty": math.nan},
        {"top_n_sigma": math.inf},
        {"seed": -1},
        {"seed": 2**64},
    ],
)
def test_settings_that_mean_nothing_are_refused(values: dict[str, float]):
    (name, value), *_ = values.items()
    with pytest.raises(ConfigError, match=f"{name} must be .*, got"):
        Sampling(**values)
    assert value != getattr(Sampling(), name)


def test_a_bias_must_be_for_a_token_that_exists():
    with pytest.raises(ConfigError, match="token 5: ids go from 0 to 4"):
        chooser(Sampling(logit_bias=((5, 1.0),)), 5)


@pytest.mark.parametrize("t", [0.0, 1.0])
def test_truncation_does_not_disturb_greedy(t: float):
    every = Sampling(temperature=t, top_k=40, top_p=0.9, min_p=0.05, seed=3)
    assert (chooser(every, 9) is greedy) == (t == 0)


@pytest.mark.parametrize("s", [Sampling(1.0), Sampling(1.0, top_k=5, top_p=0.9)])
def test_a_row_without_any_token_is_a_broken_model(s: Sampling):
    with pytest.raises(ModelError, match="no token a probability"):
        chooser(s, 600)(np.full(600, -np.inf, np.float32), np.zeros(1, np.int32))


@pytest.mark.parametrize("s", [{}, {"temperature": 1.0, "top_k": 3}])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_row_without_a_best_number_is_a_broken_model(s, value: float):
    row = np.zeros(5, np.float32)
    row[slice(None) if value < 0 else 2] = value
    with pytest.raises(NoNumbers, match=f"its best logit is {value}"):
        chooser(Sampling(**s), 5)(row, np.zeros(1, np.int32))


def test_a_bias_without_bounds_is_no_broken_model():
    row, before = np.zeros(5, np.float32), np.zeros(1, np.int32)
    assert chooser(Sampling(logit_bias=((3, np.inf),)), 5)(row, before) == 3
    none = tuple((token, -np.inf) for token in range(5))
    for t in (0.0, 1.0):
        with pytest.raises(ConfigError, match="the logit bias forbid all"):
            chooser(Sampling(temperature=t, logit_bias=none), 5)(row, before)
