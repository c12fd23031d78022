"""Samples follow the exact law, and coupled draws agree as often as they should.

Chi-square tests with fixed seeds, so they pass or fail for good. Each one is also run
against a law, or with a noise, that it must reject.
"""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from numpy.typing import NDArray
from test_sampling import plain_law

from edgecs.sampling import noise
from edgecs.sampling.chain import SamplerChain, chooser
from edgecs.sampling.settings import Sampling
from edgecs.testing.fakes import TableModel

VOCAB, DRAWS = 4, 4000
MODEL = TableModel(VOCAB, seed=5, sharpness=1.0)
PROMPT = [0, 1, 2, 1]

SETTINGS = {
    "temperature 1": {},
    "temperature 0.6": {"temperature": 0.6},
    "temperature 1.7": {"temperature": 1.7},
    "top-k": {"top_k": 3},
    "top-p": {"top_p": 0.8},
    "min-p": {"min_p": 0.25},
    "typical": {"typical_p": 0.7},
    "top-n-sigma": {"top_n_sigma": 1.2},
    "xtc": {"xtc_probability": 0.4, "xtc_threshold": 0.2},
    "penalties": {"repeat_penalty": 1.4, "frequency_penalty": 0.3},
    "presence": {"presence_penalty": 0.7, "repeat_last_n": 3},
    "dry": {"dry_multiplier": 0.9, "dry_allowed_length": 1},
    "bias": {"logit_bias": ((1, 0.8), (2, -0.5))},
    "all": {
        "temperature": 0.8,
        "top_k": 3,
        "top_p": 0.97,
        "min_p": 0.02,
        "repeat_penalty": 1.1,
        "dry_multiplier": 0.4,
        "xtc_probability": 0.3,
        "xtc_threshold": 0.25,
    },
}


def sampling(values, **more) -> Sampling:
    return Sampling(**{"temperature": 1.0, **values, **more})


def joint_law(s: Sampling, steps: int = 3) -> dict[tuple[int, ...], float]:
    """Exact probability of every continuation of `steps` tokens."""
    law = {(): 1.0}
    for _ in range(steps):
        longer = {}
        for path, mass in law.items():
            for token, p in position_law(s, [*PROMPT, *path]).items():
                longer[(*path, token)] = mass * p
        law = longer
    return law


def position_law(s: Sampling, tokens: list[int]) -> dict[int, float]:
    row, mixed = MODEL.law(tokens).tolist(), Counter[int]()
    for coin in (True, False):
        share = s.xtc_probability if coin else 1 - s.xtc_probability
        for token, p in plain_law(row, tokens, s, xtc=coin).items() if share else ():
            mixed[token] += share * p
    return dict(mixed)


def drawn(values, *, seeds: range, steps: int = 3) -> Counter[tuple[int, ...]]:
    """What consecutive seeds draw, position after position."""
    rows: dict[tuple[int, ...], NDArray[np.float32]] = {}
    counts: Counter[tuple[int, ...]] = Counter()
    for seed in seeds:
        choose = SamplerChain(sampling(values, seed=seed), {0: [()]}, None, 0)
        path: tuple[int, ...] = ()
        for _ in range(steps):
            if path not in rows:
                rows[path] = MODEL.law([*PROMPT, *path])
            tokens = np.array([*PROMPT, *path], np.int32)
            path = (*path, choose(rows[path], tokens))
        counts[path] += 1
    return counts


def fits(counts: Counter[tuple[int, ...]], law: dict[tuple[int, ...], float]) -> bool:
    """Pearson's chi-square at 4 sigma; cells that expect less than 5 are one cell."""
    total = counts.total()
    if any(path not in law for path in counts):
        return False
    cells: list[tuple[float, float]] = []
    rest = np.zeros(2)
    for path, p in law.items():
        if p * total >= 5:
            cells.append((counts[path], p * total))
        else:
            rest += (counts[path], p * total)
    if rest[1] > 0:
        cells.append((rest[0], rest[1]))
    statistic = sum((seen - wanted) ** 2 / wanted for seen, wanted in cells)
    freedom = len(cells) - 1
    # Wilson and Hilferty's approximation of the quantile.
    spread = 2 / (9 * freedom)
    return bool(statistic <= freedom * (1 - spread + 4 * spread**0.5) ** 3)


@pytest.mark.parametrize("name", SETTINGS)
def test_three_tokens_follow_their_joint_law(name: str):
    values = SETTINGS[name]
    counts = drawn(values, seeds=range(DRAWS))
    assert fits(counts, joint_law(sampling(values)))
    # Were the law another one, by a half in temperature, it would show.
    warmer = sampling(values, temperature=sampling(values).temperature * 1.5)
    assert not fits(counts, joint_law(warmer))


@pytest.mark.parametrize("name", [n for n in SETTINGS if not n.startswith("temp")])
def test_every_sampler_does_something(name: str):
    values = {k: v for k, v in SETTINGS[name].items() if k != "temperature"}
    counts = drawn(values, seeds=range(DRAWS))
    assert not fits(counts, joint_law(sampling({})))


def neighbours(seeds: int) -> Counter[tuple[int, ...]]:
    """(token of seed s at position p + 1, token of seed s + 1 at position p)."""
    row, counts = np.zeros(VOCAB, np.float32), Counter[tuple[int, ...]]()
    chooses = [chooser(sampling({}, seed=seed), VOCAB) for seed in range(seeds + 1)]
    five, six = np.zeros(5, np.int32), np.zeros(6, np.int32)
    for one, next_one in itertools.pairwise(chooses):
        counts[one(row, six), next_one(row, five)] += 1
    return counts


def test_neighbouring_seeds_and_positions_are_independent(
    monkeypatch: pytest.MonkeyPatch,
):
    uniform = dict.fromkeys(itertools.product(range(VOCAB), repeat=2), 1 / 16)
    assert fits(neighbours(DRAWS), uniform)
    monkeypatch.setattr(noise, "key", lambda seed, position: seed + position)
    assert not fits(neighbours(DRAWS), uniform)


def test_tokens_of_one_position_are_independent():
    # Which of two far apart tokens wins says nothing about two others.
    counts = Counter[tuple[int, ...]]()
    for seed in range(DRAWS):
        drawn = noise.gumbel(noise.key(seed, 3), np.array([0, 1, 40_000, 40_001]))
        counts[int(drawn[0] < drawn[1]), int(drawn[2] < drawn[3])] += 1
    quarter = dict.fromkeys(itertools.product(range(2), repeat=2), 0.25)
    assert fits(counts, quarter)
    assert not fits(Counter({(0, 0): 2200, (1, 1): 1800}), quarter)


def acceptance(p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
    """Closed form: sum over v of 1 / sum over u of max(p_u / p_v, q_u / q_v)."""
    return float(
        sum(
            1 / np.maximum(p / p[v], q / q[v]).sum()
            for v in range(p.size)
            if p[v] and q[v]
        )
    )


def tables(n: int) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Logits of n targets and of drafters that are near them, more or less."""
    pairs = []
    for i in range(n):
        row = TableModel(8, i, sharpness=2.0).law([i])
        other = TableModel(8, i + n, sharpness=0.2 + i % 5 * 0.3).law([i])
        pairs.append((row, row + other))
    return pairs


def softmax(row: NDArray[np.float32]) -> NDArray[np.float64]:
    weights = np.exp(row.astype(float) - row.max())
    return weights / weights.sum()


def agreement(a, b, seeds: int, *, shift: int = 0) -> float:
    """How often target and drafter choose the same token."""
    tokens = np.zeros(9, np.int32)
    same = 0
    for seed in range(seeds):
        target = chooser(sampling({}, seed=seed), 8)
        drafter = chooser(sampling({}, seed=seed + shift), 8)
        same += target(a, tokens) == drafter(b, tokens)
    return same / seeds


def test_coupled_draws_agree_as_often_as_the_closed_form_says():
    for a, b in tables(5):
        expected = acceptance(softmax(a), softmax(b))
        error = 4 * (expected * (1 - expected) / DRAWS) ** 0.5
        assert abs(agreement(a, b, DRAWS) - expected) <= error
        # With noise of its own a drafter would agree far less often.
        assert agreement(a, b, DRAWS, shift=DRAWS) < expected - error


def test_coupling_comes_close_to_the_best_acceptance_possible():
    ratios = []
    for a, b in tables(300):
        p, q = softmax(a), softmax(b)
        total_variation = np.abs(p - q).sum() / 2
        accepted = acceptance(p, q)
        bound = (1 - total_variation) / (1 + total_variation)
        assert bound - 1e-9 <= accepted <= 1 - total_variation + 1e-9
        ratios.append(accepted / (1 - total_variation))
    assert np.mean(ratios) >= 0.93
    independent = [(softmax(a) * softmax(b)).sum() for a, b in tables(300)]
    overlap = [np.minimum(softmax(a), softmax(b)).sum() for a, b in tables(300)]
    assert np.mean(np.divide(independent, overlap)) < 0.93
