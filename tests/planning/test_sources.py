"""A source of one's own: planned, calibrated, parked and explained like the others.

Nothing outside this file knows it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from edgecs.core.context import Context
from edgecs.core.draft import NOTHING, Choose, Draft, Rows, Verdict
from edgecs.costs.cost_model import CostModel
from edgecs.drafters.maxgram import MaxGram
from edgecs.drafters.source import Keeper, Source
from edgecs.planning.acceptance import Calibration
from edgecs.planning.planner import Planner
from edgecs.session.session import Session
from edgecs.testing.fakes import Endless, TableModel
from edgecs_cli.loading.explain import legend


class Recital:
    """Knows a text by heart: the smallest source there is."""

    buckets, prior, is_vague = 1, (0.0,), False

    def __init__(self, text: Sequence[int], *, fails: bool = False) -> None:
        self.name, self._text, self._fails = "recital", list(text), fails

    def propose(self, context: Context, k: int, choose: Choose | None = None) -> Draft:
        found = self.continuation(context, k)
        return Draft.chain(found, self.name) if found else NOTHING

    def continuation(self, context: Context, k: int) -> list[int]:
        if self._fails:
            raise RuntimeError("the text is forgotten")
        return self._text[len(context) : len(context) + k]

    def evidence(self, tokens: Sequence[int]) -> Iterator[Sequence[int]]:
        yield from ((0,) for _ in tokens)

    def observe(
        self, context: Context, draft: Draft, rows: Rows, verdict: Verdict
    ) -> None:
        pass

    def state(self) -> dict[str, object]:
        return {"tokens": len(self._text)}

    def take(self, state: dict[str, object]) -> None:
        if state.get("tokens") != len(self._text):
            raise ValueError("another text")


VOCAB, PROMPT, MOST = 40, [1, 2, 3], 120


def answer(sources: Sequence[Source]) -> tuple[list[int], Session]:
    target, costs = TableModel(VOCAB), CostModel()
    for width in range(1, 17):
        costs.observe(width, 0, 1.0 + 0.01 * width)
    planner = Planner(costs, Calibration(), sources)
    with Session(target, Endless(), schedule=planner) as session:
        return [t.id for t in session.generate(PROMPT, max_tokens=MOST)], session


@pytest.mark.parametrize("wrong", [0, 1])
def test_it_is_planned_and_calibrated(wrong: int):
    plain, _ = answer([])
    text = [*PROMPT, *((token + wrong) % VOCAB for token in plain)]
    said, session = answer([Recital(text)])
    assert said == plain
    counts, schedule = session.stats.by_source()["recital"], session.cascade.schedule
    assert isinstance(schedule, Planner)
    (source,) = schedule.sources.all
    (odds,) = schedule.calibration.source(source).kept
    if wrong:
        assert counts["accepted"] == 0
        assert odds < 0
    else:
        assert counts["accepted"] > MOST / 2
        assert session.stats.rounds < MOST / 2
        assert odds > 0


def test_what_was_learnt_comes_back():
    calibration, source = Calibration(), Recital([])
    calibration.source(source).learn([[0]] * 8, 8, False)
    again = Calibration.from_state(calibration.state())
    assert again.source(source).kept == pytest.approx(
        calibration.source(source).kept, abs=1e-4
    )
    assert isinstance(source, Keeper)
    assert not isinstance(MaxGram(), Keeper)


@pytest.mark.faults
def test_it_is_parked_when_it_fails():
    plain, _ = answer([])
    said, session = answer([Recital([], fails=True), MaxGram()])
    assert said == plain
    assert list(session.stats.faults) == ["recital"]


def test_it_is_explained():
    plain, _ = answer([])
    _, session = answer([MaxGram(), Recital([*PROMPT, *plain])])
    told = "\n".join(map(str, legend(session, "numeric", colours=False)))
    assert "recital: used in" in told
    assert "mag: used in" in told
