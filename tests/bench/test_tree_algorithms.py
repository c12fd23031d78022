"""Replays of trees of a given size: what they draft, and what they report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecs.core.draft import Draft
from edgecs_bench.hardware.curves import CURVES, curve
from edgecs_bench.simulation import tree_algorithms
from edgecs_bench.simulation.replay import Player, recycled
from edgecs_bench.simulation.traces import Recording, Trace, write_traces
from edgecs_bench.simulation.tree_algorithms import Rounds, best_of, fixed, replayed
from edgecs_bench.simulation.tree_schedules import Grown, Shaped
from edgecs_bench.simulation.tree_shapes import Shape, sequoia

WORDS = 6


def recording(answers: int = 8, size: int = 40, seed: int = 0) -> Recording:
    """Answers that often go on as the last token did before."""
    random = np.random.default_rng(seed)
    usual = random.integers(0, WORDS, WORDS)
    traces = []
    for number in range(answers):
        output = [int(random.integers(WORDS))]
        while len(output) < size:
            other = random.random() < 0.4
            token = random.integers(WORDS) if other else usual[output[-1]]
            output.append(int(token))
        ranked = [[token, (token + 1) % WORDS] for token in output]
        gap = [1.0] * size
        traces.append(Trace(str(number), "any", [1, 2], output, gap, {}, ranked=ranked))
    return Recording("target", (), 0.0, 1, 8, tuple(traces))


shapes = st.integers(0, 9).map(lambda n: sequoia([0.5, 0.3, 0.1], 9, 4)[n].shape)


@given(shapes, st.integers(0, 3))
@settings(max_examples=15, deadline=None)
def test_a_static_tree_has_at_most_the_nodes_of_its_shape(shape: Shape, seed: int):
    drafted: list[Draft] = []

    class Seen(Shaped):
        def draft(self, *asked):
            gathered = super().draft(*asked)
            drafted.append(gathered.draft)
            return gathered

    found = replayed([recording(3, seed=seed)], Seen(recycled(), shape))
    assert sum(half.tokens for half in found) == 3 * 39
    for draft in drafted:
        draft.check()
        assert len(draft) <= len(shape)
        assert len(draft.children()) == len(draft)  # siblings differ
    if len(shape) > 1:
        assert max(map(len, drafted)) > 1


def test_ranks_are_counted_at_every_position():
    counting = Shaped(recycled(), ())
    player = Player(CURVES[0], (), sources=counting.sources)
    player.schedule = counting
    for trace in recording().traces:
        player.play(trace)
    assert sum(counting.seen.values()) == 8 * 39
    chances = counting.chances()
    assert 0.4 < chances[0] < 1
    assert sum(chances) <= 1


@pytest.mark.parametrize("settling", [0.0, 3.0])
def test_rounds_of_one_token_are_plain_decoding(settling: float):
    flat = curve("", 10.0, {1: 1.0, 2: 1.0, 4: 1.0}, 0.5)._replace(settling=settling)
    plain = replayed([recording()], Grown(recycled(), most=0))
    for half in plain:
        assert set(half.widths) == {1}
        assert half.over_plain(flat) == pytest.approx(1)
    mixed = Rounds([1, 2, 1], [1, 2, 4], 4)
    assert mixed.over_plain(flat) == pytest.approx(4 * 10.5 / (3 * 10.5 + settling))
    # The next answer begins with a smaller depth, and with a call of its own.
    other = Rounds([1, 2, 1], [1, 2, 1], 4)
    assert other.over_plain(flat) == pytest.approx(4 / 3)


def test_settings_are_chosen_on_the_tuning_half(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tree_algorithms, "SIZES", (0, 4))
    monkeypatch.setattr(tree_algorithms, "THRESHOLDS", (0.3,))
    ways = fixed([recording()])
    flat = curve("", 10.0, {1: 1.0, 4: 1.0, 8: 1.0, 16: 1.0, 32: 1.0}, 0.0)
    steep = curve("", 10.0, {1: 1.0, 4: 4.0, 8: 8.0, 16: 16.0, 32: 32.0}, 0.0)
    for name, settings_ in ways.items():
        assert best_of(settings_, flat)["over_plain"] > 1, name
        none = 1.0 if name == "dyspec_threshold" else 0
        assert best_of(settings_, steep)["setting"] == none


def test_the_command_writes_every_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tree_algorithms, "SIZES", (0, 2))
    monkeypatch.setattr(tree_algorithms, "THRESHOLDS", (0.3,))
    file = tmp_path / "traces.jsonl.gz"
    write_traces(file, recording(6, 20))
    asked = ["--traces", str(file), "--curve", "flat"]
    outcome = CliRunner().invoke(tree_algorithms.main, asked)
    assert outcome.exit_code == 0, outcome.output
    found = json.loads(outcome.stdout.splitlines()[-1])["curves"]["flat"]
    assert [*found] == ["chains", "trees", "sequoia", "dyspec", "dyspec_threshold"]
    assert all(row["over_plain"] > 0 for row in found.values())
    outcome = CliRunner().invoke(tree_algorithms.main, [*asked[:3], "none"])
    assert outcome.exit_code == 2
    assert "no curve is named none" in outcome.output
