"""Drafts made ahead change no answer, whatever their drafter does meanwhile."""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecs.core.draft import Request, Rows
from edgecs.costs.cost_model import CostModel
from edgecs.costs.overlap import break_even, overlapped
from edgecs.decoding.cascade import NamedModel
from edgecs.errors import Cancelled
from edgecs.planning.acceptance import Calibration
from edgecs.planning.ahead import Ahead
from edgecs.planning.planner import Planner
from edgecs.planning.worker import Step, WorkerThread
from edgecs.sampling.chain import always, chooser
from edgecs.sampling.settings import Sampling
from edgecs.server.batching.job import Ended, Event, Job
from edgecs.server.batching.scheduler import Scheduler
from edgecs.session.session import Session
from edgecs.testing.fakes import Endless
from edgecs_bench.simulation.replay_drafter import Watch
from tests.planning.timed_models import Near, Timed, trusted

VOCAB = 6


class Inline:
    """A worker without a thread: some steps run when the work ends.

    steps: returns how many of them are in time, 0 or more.
    """

    def __init__(self, steps: Callable[[], int]) -> None:
        self.stopping = threading.Event()
        self.steps, self.works, self.closed = steps, 0, False
        self._step: Step | None = None

    def start(self, step: Step) -> None:
        assert self._step is None, "it works already"
        self.stopping.clear()
        self._step = step
        self.works += 1

    def finish(self) -> None:
        step, self._step = self._step, None
        for _ in range(self.steps() if step else 0):
            if not step():
                break
        self.stopping.set()

    def close(self) -> None:
        self.finish()
        self.closed = True


class Drafting(Near):
    """A drafter that checks that it is not used by two threads at once."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.inside = threading.Lock()
        self.before: Callable[[], None] = lambda: None  # called in every call

    def rows(self, request: Request) -> Rows:
        assert self.inside.acquire(blocking=False), "it is used by two threads"
        try:
            self.before()
            return super().rows(request)
        finally:
            self.inside.release()


class Waiting(Timed):
    """A target whose calls last until `until` says so."""

    until: Callable[[], object] = staticmethod(lambda: None)

    def rows(self, request: Request) -> Rows:
        self.until()
        return super().rows(request)


def schedule(
    target: Timed, drafters: list[Timed], ahead: Ahead | None, **options
) -> Planner:
    named = [NamedModel(f"d{i}", model) for i, model in enumerate(drafters)]
    costs, clock = CostModel(), target.watch.now
    target.measured(costs)
    planner = Planner(
        costs, Calibration(), [], named, clock=clock, ahead=ahead, **options
    )
    for neural, model in zip(planner.neural, drafters, strict=True):
        model.measured(neural.costs)
        trusted(neural)
    return planner


def session(target: Timed, planner: Planner, **options) -> Session:
    return Session(target, Endless(), schedule=planner, **options)


def ids(stream) -> list[int]:
    return [token.id for token in stream]


samplings = st.sampled_from(
    [Sampling(), Sampling(temperature=0.8, seed=7), Sampling(temperature=0.8, top_k=2)]
)


@given(
    data=st.data(),
    sampling=samplings,
    noises=st.lists(st.sampled_from([0.0, 0.3, 1.0, 3.0]), min_size=1, max_size=2),
    single=st.sampled_from([0.5, 2.0, 4.0, 12.0]),
    seed=st.integers(0, 3),
)
@settings(max_examples=40)
def test_the_answer_is_that_of_the_target_alone(data, sampling, noises, single, seed):
    watch = Watch()
    target = Timed(watch, VOCAB, seed)
    drafters = [Near(target, noise, i, single=single) for i, noise in enumerate(noises)]
    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    late = data.draw(st.sampled_from([0, 1, 3, 12]))
    worker = Inline(lambda: int(random.integers(0, late + 1)))
    planner = schedule(target, drafters, Ahead(worker=worker, clock=watch.now))
    choose = chooser(sampling, VOCAB)
    prompt = data.draw(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=6))
    with session(target, planner, rule=always(choose)) as opened:
        said = ids(opened.generate(prompt, max_tokens=40))
        stats = opened.stats
        # An answer that is regenerated, and one to an edited prompt.
        again = ids(opened.generate(prompt, max_tokens=12))
        edited = [*prompt[:-1], (prompt[-1] + 1) % VOCAB]
        other = ids(opened.generate(edited, max_tokens=12))
    assert said == target.alone(prompt, 40, choose)
    assert again == said[:12]
    assert other == target.alone(edited, 12, choose)
    assert stats.tokens == 1 + stats.accepted + stats.rounds
    told = stats.made_ahead()
    assert told["made"] >= told["used"] >= 0
    assert told["dropped"] == told["made"] - told["used"]
    assert worker.closed
    assert not stats.faults


def played(
    noise: float,
    *,
    single: float = 3.0,
    steps: Callable[[], int] = lambda: 9,
    tokens: int = 120,
    most: int | None = None,
):
    """One answer with a drafter that works ahead; its statistics, and the worker."""
    watch = Watch()
    target = Timed(watch, VOCAB, 1)
    drafter = Near(target, noise, single=single)
    worker = Inline(steps)
    planner = schedule(target, [drafter], Ahead(worker=worker, clock=watch.now))
    with session(target, planner) as opened:
        said = ids(opened.generate([1], max_tokens=tokens))
        assert said == target.greedy([1], tokens)
        return opened.stats, worker, planner


def test_drafts_of_a_drafter_that_is_right_are_used():
    stats, worker, _ = played(0.0)
    told = stats.made_ahead()
    assert told["made"] > 10
    assert told["used"] >= told["made"] - 1  # the last one has no next round
    assert worker.works >= told["made"]
    assert stats.mean_acceptance_length > 3


def test_drafts_after_a_wrong_outcome_are_dropped():
    stats, _, _ = played(0.6)
    told = stats.made_ahead()
    assert told["made"] > told["used"] > 0
    assert told["dropped"] > 0


@pytest.mark.parametrize("steps", [0, 1])
def test_a_late_drafter_has_made_nothing(steps: int):
    """One token is only the guess of the target's own."""
    stats, worker, _ = played(0.0, steps=lambda: steps)
    assert worker.works
    assert stats.made_ahead() == {"made": 0, "used": 0, "dropped": 0}


def test_a_drafter_that_is_too_slow_does_not_work_ahead():
    stats, worker, _ = played(0.0, single=30.0)
    assert not worker.works
    assert stats.made_ahead()["made"] == 0


def test_nothing_is_drafted_beyond_the_end_of_the_answer():
    stats, _, _ = played(0.0, tokens=5)
    assert stats.tokens == 5


def test_calls_that_become_slower_end_the_work():
    """A drafter that takes the target's memory bandwidth or cores does not pay."""
    watch = Watch()
    target, slow = Waiting(watch, VOCAB, 1), 8.0
    drafter = Near(target, 0.3, single=3.0)
    worker = Inline(lambda: 9)
    ahead = Ahead(worker=worker, clock=watch.now)
    planner = schedule(target, [drafter], ahead)
    target.until = lambda: ahead.worked and watch.pass_by(slow * 0.01)
    with session(target, planner) as opened:
        # The clock of the cascade is the one that the target moves on.
        opened.cascade._clock = watch.now
        said = ids(opened.generate([1], max_tokens=200))
        assert said == target.greedy([1], 200)
        rounds = opened.stats.rounds
    assert 0 < worker.works < rounds / 4
    assert planner.costs.times(0, 1)[0] < 0.02, "slow calls were taken for usual ones"


@pytest.mark.faults
def test_a_drafter_that_fails_ahead_is_disabled_and_the_answer_goes_on():
    watch = Watch()
    target = Timed(watch, VOCAB, 1)
    drafter = Drafting(target, 0.0, single=3.0)
    worker = WorkerThread()

    def fail() -> None:
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError("out of order")

    drafter.before = fail
    planner = schedule(target, [drafter], Ahead(worker=worker, clock=watch.now))
    rounds = []
    with session(target, planner) as opened:
        opened.on_round = lambda context, done: rounds.append(dict(done.faults))
        said = ids(opened.generate([1], max_tokens=40))
        assert said == target.greedy([1], 40)
        assert opened.stats.faults == {"d0": "RuntimeError: out of order"}
        assert sum(map(bool, rounds)) == 1
        assert opened.finish_reason == "length"
        assert ids(opened.generate([1], max_tokens=40)) == said


@pytest.mark.faults
def test_work_that_cannot_begin_costs_no_token(monkeypatch):
    watch = Watch()
    target = Timed(watch, VOCAB, 1)
    ahead = Ahead(worker=Inline(lambda: 9), clock=watch.now)
    planner = schedule(target, [Near(target, 0.0, single=3.0)], ahead)
    monkeypatch.setattr(ahead, "start", lambda *_: 1 / 0)
    with session(target, planner) as opened:
        assert ids(opened.generate([1], max_tokens=40)) == target.greedy([1], 40)
        assert "ZeroDivisionError" in str(opened.stats.faults)


def test_without_threads_a_drafter_waits():
    watch = Watch()
    target = Timed(watch, VOCAB, 1)
    worker = Inline(lambda: 9)

    def refuse(step: Step) -> None:
        raise RuntimeError("can't start new thread")

    worker.start = refuse  # type: ignore[method-assign]
    ahead = Ahead(worker=worker, clock=watch.now)
    planner = schedule(target, [Near(target, 0.0, single=3.0)], ahead)
    with session(target, planner) as opened:
        assert ids(opened.generate([1], max_tokens=40)) == target.greedy([1], 40)
        assert not opened.stats.faults
        assert opened.stats.accepted


def threaded(noise: float, in_call: Callable[[Drafting], None]):
    """A session whose drafter works in a thread, while the target waits for it."""
    watch = Watch()
    target = Waiting(watch, VOCAB, 1)
    drafter = Drafting(target, noise, single=3.0)
    ahead = Ahead(worker=WorkerThread(), clock=watch.now)
    planner = schedule(target, [drafter], ahead)
    made = threading.Semaphore(0)

    def before() -> None:
        if threading.current_thread() is not threading.main_thread():
            in_call(drafter)
            made.release()

    drafter.before = before
    target.until = lambda: ahead.worked and made.acquire(timeout=30)
    return target, drafter, session(target, planner)


def test_a_thread_drafts_while_the_target_computes():
    seen = []
    target, _, opened = threaded(0.0, seen.append)
    with opened:
        said = ids(opened.generate([1], max_tokens=60))
        assert said == target.greedy([1], 60)
    assert seen
    named = [thread.name for thread in threading.enumerate()]
    assert not any(name.startswith("edgecs-drafter") for name in named)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("noise", [0.3, 2.0])
def test_threads_leave_answers_as_they_are(noise: float, temperature: float):
    target, _, opened = threaded(noise, lambda drafter: None)
    choose = chooser(Sampling(temperature=temperature, seed=3), VOCAB)
    with opened:
        for prompt in ([1], [1, 2], [3]):
            said = ids(opened.generate(prompt, max_tokens=40, rule=always(choose)))
            assert said == target.alone(prompt, 40, choose)


def test_an_interrupted_answer_ends_the_work_of_its_drafter():
    """The drafter's call under way ends with the target's call, without a fault."""
    calls, told = [], []

    def read_on(drafter: Drafting) -> None:
        """A long call, which looks at its cancel event as engines do."""
        calls.append(1)
        if len(calls) > 3:
            opened.interrupt()
            told.append(opened)
            raise Cancelled("stopped")

    target, _, opened = threaded(0.0, read_on)
    target.until = lambda: None
    with opened:
        said = ids(opened.generate([1], max_tokens=400))
        assert said == target.greedy([1], 400)[: len(said)]
        if told:
            assert opened.finish_reason == "cancelled"
        assert not opened.stats.faults
        assert ids(opened.generate([2], max_tokens=1)) == target.greedy([2], 1)


def test_a_target_that_fails_waits_for_its_drafter():
    held, free = threading.Event(), threading.Event()

    def hang(drafter: Drafting) -> None:
        held.set()
        assert free.wait(30)

    target, drafter, opened = threaded(0.0, hang)

    def fail() -> None:
        if opened.cascade.schedule.ahead.worked:
            assert held.wait(30)
            free.set()
            raise RuntimeError("the device is lost")

    target.until = fail
    with opened, pytest.raises(RuntimeError, match="the device is lost"):
        ids(opened.generate([1], max_tokens=40))
    assert not drafter.inside.locked()


def test_a_session_without_ahead_has_no_thread():
    watch = Watch()
    target = Timed(watch, VOCAB, 1)
    planner = schedule(target, [Near(target, 0.0, single=3.0)], None)
    with session(target, planner) as opened:
        ids(opened.generate([1], max_tokens=40))
        assert opened.stats.made_ahead() == {"made": 0, "used": 0, "dropped": 0}


@given(
    right=st.floats(0, 1),
    step=st.floats(0.01, 3),
    slope=st.floats(0, 1),
    most=st.integers(1, 8),
)
def test_the_expected_rate_is_within_its_limits(right, step, slope, most):
    times = [1 + slope * n for n in range(9)]
    found = overlapped(right, times, step, most)
    # No round emits more than a draft and a token, nor takes less than call or drafter.
    assert 0 < found.rate <= (1 + most) / max(1.0, 2 * step) * (1 + 1e-6)
    assert 2 <= found.steps <= most + 1
    assert 0 <= found.first <= most
    assert found.worth >= 0
    flat, better = [1.0] * 9, min(1.0, right + 0.1)
    rates = [overlapped(share, flat, step, most).rate for share in (right, better)]
    assert rates[0] <= rates[1] + 1e-6
    assert overlapped(right, times, step / 2, most).rate >= found.rate - 1e-6


@given(
    right=st.sampled_from([0.0, 0.5, 1.0]),
    without=st.sets(st.integers(1, 8)),
    step=st.floats(0.05, 3),
)
def test_widths_that_are_not_available_are_not_counted_on(right, without, step):
    times = [math.inf if n in without else 1.0 for n in range(9)]
    found = overlapped(right, times, step)
    assert math.isfinite(found.rate)
    assert found.rate <= overlapped(right, [1.0] * 9, step).rate + 1e-9
    if not right:
        assert found.rate <= 1 + 1e-9


def test_a_longer_one_of_two_times_counts():
    """A drafter that is always right, with two steps in a call, doubles the speed."""
    flat = [1.0] * 9
    assert overlapped(1.0, flat, 0.5).rate == pytest.approx(2)
    assert overlapped(1.0, flat, 1.0).rate == pytest.approx(1)
    assert overlapped(0.0, flat, 0.5).rate == pytest.approx(1)


def test_the_break_even_grows_with_the_time_of_a_step():
    flat = [1.0] * 9
    found = [break_even(flat, step) for step in (0.2, 0.6, 0.9)]
    assert found == sorted(found)
    assert break_even(flat, 1.5) is None


def test_the_drafter_of_a_sole_conversation_of_a_server_goes_on():
    watch, ended = Watch(), queue.Queue[Event]()
    target = Timed(watch, VOCAB, 1)
    worker = Inline(lambda: 9)
    ahead = Ahead(worker=worker, clock=watch.now)
    planner = schedule(target, [Near(target, 0.0, single=3.0)], ahead)
    with session(target, planner) as opened:
        server = Scheduler([opened])
        try:
            server.submit(Job(np.array([1], dtype=np.int32), max_tokens=60), ended.put)
            said: list[int] = []
            while isinstance(event := ended.get(timeout=60), list):
                said += [token.id for token in event]
        finally:
            server.close()
    assert said == target.greedy([1], 60)
    assert isinstance(event, Ended)
    assert event.stats.made_ahead()["used"] > 0
