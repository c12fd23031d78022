"""Answers of several clients: each is what the target says to it alone."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Never

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecs.core.context import Context
from edgecs.core.draft import Request, Rows
from edgecs.costs.cost_model import CostModel
from edgecs.decoding.static_schedule import Schedule
from edgecs.drafters.maxgram import MaxGram
from edgecs.errors import Cancelled, ConfigError, EdgecsError, ModelError
from edgecs.planning.acceptance import Calibration
from edgecs.planning.planner import Planner
from edgecs.sampling.chain import always, chooser
from edgecs.sampling.settings import Sampling
from edgecs.server.batching.job import Busy, Ended, Event, Job
from edgecs.server.batching.joint import best_joint_width
from edgecs.server.batching.scheduler import Scheduler
from edgecs.session.session import Session
from edgecs.testing.fakes import CachingModel, Endless

VOCAB = 5
WAIT = 60.0  # seconds after which a test has failed


class Shared(CachingModel):
    """A target whose rows may be computed with others; its law repeats itself."""

    uniform = True

    def __init__(
        self, sequences: int, n_ctx: int = 400, copy_cost: int | None = None
    ) -> None:
        super().__init__(VOCAB, sequences=sequences, n_ctx=n_ctx, copy_cost=copy_cost)
        self.copies: list[tuple[int, int, int]] = []
        self.calls: list[list[int]] = []  # tokens of every request of every call
        self.gate: threading.Event | None = None
        self.free = 0  # calls for which the gate is open

    def law(self, prefix):
        return super().law(prefix[-3:])

    def copy(self, source, target, length):
        self.copies.append((source, target, length))
        return super().copy(source, target, length)

    def score(self, requests):
        if self.gate is not None and len(self.calls) >= self.free:
            assert self.gate.wait(WAIT)
        rows = super().score(requests)
        self.calls.append([found.fed for found in rows])
        return rows


def costs() -> CostModel:
    """Joint calls pay: four tokens cost little more than one."""
    known = CostModel()
    known.measured(0, {n: 0.01 * (1 + 0.05 * n) for n in range(1, 33)})
    return known


def planned(known: CostModel) -> Schedule:
    return Planner(known, Calibration(), [MaxGram()], longest=8)


@contextmanager
def scheduler(
    target: Shared, *, drafts: bool = True, **more: object
) -> Iterator[Scheduler]:
    known = costs()
    with ExitStack() as closing:
        sessions = [
            closing.enter_context(
                Session(
                    target,
                    Endless(),
                    schedule=planned(known) if drafts else None,
                    sequence=i,
                )
            )
            for i in range(target.sequences)
        ]
        made = Scheduler(sessions, known, **more)
        try:
            yield made
        finally:
            if target.gate:
                target.gate.set()
            made.close()


class Client:
    """Collects what a job gives."""

    def __init__(self, made: Scheduler, job: Job) -> None:
        self._events: queue.Queue[Event] = queue.Queue()
        self.tokens: list[int] = []
        self.ticket = made.submit(job, self._events.put)

    def next(self) -> Event:
        event = self._events.get(timeout=WAIT)
        if isinstance(event, list):
            self.tokens += [token.id for token in event]
        return event

    def end(self) -> Ended | EdgecsError:
        while isinstance(event := self.next(), list):
            pass
        return event


def job(prompt: list[int], most: int = 12, **more: object) -> Job:
    return Job(np.array(prompt, np.int32), most, **more)


def alone(prompt: list[int], most: int) -> list[int]:
    return Shared(1).greedy(prompt, most)


costs_of_copies = st.sampled_from([None, 1, 30])
texts = st.lists(st.integers(0, VOCAB - 1), max_size=100)
# Most of them share a prefix with others.
prompts = st.builds(
    lambda size, text: [(i * i) % 3 for i in range(size)] + text,
    st.sampled_from([0, 20, 90, 100]),
    texts,
).filter(len)


@given(
    st.lists(st.tuples(prompts, st.integers(1, 24), st.booleans()), max_size=8),
    st.integers(1, 4),
    st.booleans(),
    costs_of_copies,
)
@settings(max_examples=80)
def test_every_client_gets_what_it_gets_alone(jobs, slots, drafts, copy_cost):
    target = Shared(slots, copy_cost=copy_cost)
    with scheduler(target, drafts=drafts, reads=64) as made:
        clients = [
            Client(made, job(prompt, most, speculate=speculate))
            for prompt, most, speculate in jobs
        ]
        for client, (prompt, most, speculate) in zip(clients, jobs, strict=True):
            ended = client.end()
            assert isinstance(ended, Ended)
            assert ended.reason == "length"
            assert client.tokens == alone(prompt, most)
            stats = ended.stats
            assert stats.prompt_tokens == len(prompt)
            assert 0 <= stats.cached_tokens < len(prompt)
            assert stats.tokens == most == 1 + stats.accepted + stats.rounds
            if not (speculate and drafts):
                assert stats.tested == 0
                assert ended.why_plain
        assert made.totals.answers == len(jobs)
        assert made.totals.tokens == sum(most for _, most, _ in jobs)


def test_sampled_answers_do_not_depend_on_their_neighbours():
    rules = [always(chooser(Sampling(1.0, seed=i), VOCAB)) for i in range(4)]
    said = []
    for slots in (1, 4):
        with scheduler(Shared(slots)) as made:
            clients = [Client(made, job([1, 2], 40, rule=rule)) for rule in rules]
            for client in clients:
                client.end()
            said.append([client.tokens for client in clients])
    assert said[0] == said[1]
    assert len({tuple(tokens) for tokens in said[0]}) == 4


def test_answers_share_their_calls():
    target = Shared(4)
    target.gate = threading.Event()
    with scheduler(target) as made:
        clients = [Client(made, job([i, 1, 2], 30)) for i in range(4)]
        target.gate.set()
        for client in clients:
            client.end()
        assert made.totals.requests > 2 * made.totals.calls
        assert made.totals.accepted > 0
    assert any(len(call) == 4 for call in target.calls)


def test_a_long_prompt_is_read_between_the_rounds_of_others():
    target = Shared(2)
    target.gate = threading.Event()
    with scheduler(target, drafts=False) as made:
        talker = Client(made, job([1, 2], 200))
        reader = Client(made, job([3] * 390, 2))
        target.gate.set()
        assert isinstance(reader.end(), Ended)
        assert isinstance(talker.end(), Ended)
    first, *_, last = (i for i, c in enumerate(target.calls) if max(c) > 2)
    assert max(target.calls[first]) <= 64
    assert [1] in target.calls[first:last]


def test_a_prompt_goes_to_the_slot_that_has_most_of_it():
    with scheduler(Shared(2)) as made:
        for prompt in ([1] * 50, [2] * 50):
            assert isinstance(Client(made, job(prompt, 2)).end(), Ended)
        for prompt in ([2] * 50 + [3], [1] * 50 + [4]):
            ended = Client(made, job(prompt, 2)).end()
            assert isinstance(ended, Ended)
            assert ended.stats.cached_tokens >= 49


SYSTEM = [1, 2, 3, 4] * 25  # a prefix of several conversations


def test_a_shared_prefix_is_copied_and_not_read_again():
    target = Shared(3, copy_cost=10)
    target.gate, target.free = threading.Event(), 1
    with scheduler(target) as made:
        first = Client(made, job([*SYSTEM, 1, 1], 200))
        assert isinstance(first.next(), list)  # it goes on while the others come
        others = [Client(made, job([*SYSTEM, 2, i], 20)) for i in range(2)]
        target.gate.set()
        for i, client in enumerate(others):
            ended = client.end()
            assert isinstance(ended, Ended)
            assert client.tokens == alone([*SYSTEM, 2, i], 20)
            assert ended.stats.cached_tokens >= len(SYSTEM)
        assert isinstance(first.end(), Ended)
        assert first.tokens == alone([*SYSTEM, 1, 1], 200)
    assert len(target.copies) == 2
    assert sum(fed > 50 for call in target.calls for fed in call) == 1


def test_several_answers_to_one_prompt_read_it_once():
    target = Shared(4, copy_cost=10)
    target.gate = threading.Event()
    with scheduler(target, reads=1024) as made:
        clients = [Client(made, job(SYSTEM, 20)) for _ in range(4)]
        target.gate.set()
        ends = [client.end() for client in clients]
        cached = [ended.stats.cached_tokens for ended in ends]
        assert cached == [0, *[len(SYSTEM) - 1] * 3]
        assert {tuple(client.tokens) for client in clients} == {
            tuple(alone(SYSTEM, 20))
        }
    assert max(map(len, target.calls)) == 4  # then they share calls


def test_a_prefix_that_is_cheaper_to_read_is_not_copied():
    target = Shared(2, copy_cost=len(SYSTEM))
    with scheduler(target) as made:
        for last in ([1] * 20, [2]):
            client = Client(made, job([*SYSTEM, *last], 5))
            assert isinstance(client.end(), Ended)
    assert not target.copies


def test_a_copy_that_fails_costs_only_time():
    class Failing(Shared):
        def copy(self, source, target, length):
            super().copy(source, target, length)
            self._cells[target].cache.reset()
            return False

    target = Failing(2, copy_cost=5)
    with scheduler(target) as made:
        for last in ([1] * 20, [2]):
            client = Client(made, job([*SYSTEM, *last], 5))
            ended = client.end()
            assert isinstance(ended, Ended)
            assert client.tokens == alone([*SYSTEM, *last], 5)
            assert ended.stats.cached_tokens == 0
    assert target.copies


@pytest.mark.parametrize("copy_cost", [None, 20])
def test_a_short_match_does_not_cost_a_long_conversation(copy_cost):
    """A prompt that shares two tokens takes the least recently used slot."""
    long = [1, 2, *[3] * 200]
    target = Shared(3, copy_cost=copy_cost)
    with scheduler(target) as made:
        for prompt in ([4] * 30, long, [1, 2, *[0] * 40], [0] * 30):
            assert isinstance(Client(made, job(prompt, 3)).end(), Ended)
        again = Client(made, job([*long, 1], 3)).end()
        assert isinstance(again, Ended)
        assert again.stats.cached_tokens >= len(long)


def test_a_short_question_does_not_cost_the_long_answer_before_it():
    """Both conversations have the system prompt, and there are empty slots."""
    target = Shared(4, copy_cost=60)
    with scheduler(target) as made:
        first = Client(made, job([*SYSTEM, *[1] * 12], 150))
        assert isinstance(first.end(), Ended)
        assert isinstance(Client(made, job([*SYSTEM, *[2] * 12], 3)).end(), Ended)
        held = [*SYSTEM, *[1] * 12, *first.tokens]
        again = Client(made, job([*held, 3], 3)).end()
        assert isinstance(again, Ended)
        assert again.stats.cached_tokens >= len(held) - 1


def test_a_conversation_whose_answers_are_shortened_keeps_its_slot():
    """Templates leave out the thoughts of earlier answers."""
    target = Shared(2, copy_cost=10)
    other, talk = [4] * 40, [*SYSTEM, 1, 1]
    with scheduler(target) as made:
        assert isinstance(Client(made, job(other, 3)).end(), Ended)
        for _ in range(3):
            client = Client(made, job(talk, 60))
            assert isinstance(client.end(), Ended)
            talk += [*client.tokens[-5:], 2, 2]
        again = Client(made, job(other, 3)).end()
        assert isinstance(again, Ended)
        assert again.stats.cached_tokens == len(other) - 1


class Failing:
    """A choice that fails at some length of the text."""

    def __init__(self, at: int) -> None:
        self.at, self._plain = at, chooser(Sampling(), VOCAB)
        self.confidence, self.margin = self._plain.confidence, self._plain.margin
        self.keeps = self._plain.keeps
        self.alternatives = self._plain.alternatives

    def __call__(self, row, tokens) -> int:
        if tokens.size >= self.at:
            raise ValueError("a defect, with /a/path")
        return self._plain(row, tokens)


@pytest.mark.parametrize("at", [0, 10])
def test_a_defect_in_one_answer_ends_only_that(at: int):
    target = Shared(3)
    target.gate = threading.Event()
    with scheduler(target) as made:
        others = [Client(made, job([i, 1, 2], 40)) for i in range(2)]
        broken = Client(made, job([3, 1, 2], 40, rule=always(Failing(at))))
        target.gate.set()
        error = broken.end()
        assert isinstance(error, ModelError)
        assert "internal error" in str(error)
        assert "path" not in str(error)
        for i, client in enumerate(others):
            assert isinstance(client.end(), Ended)
            assert client.tokens == alone([i, 1, 2], 40)
        assert isinstance(Client(made, job([1], 5)).end(), Ended)


def test_a_job_that_cannot_begin_is_told():
    def rule(start: int) -> Never:
        raise ValueError("a defect")

    with scheduler(Shared(2)) as made:
        talker = Client(made, job([1, 2], 50))
        error = Client(made, job([1], 5, rule=rule)).end()
        assert isinstance(error, ModelError)
        assert isinstance(talker.end(), Ended)
        assert isinstance(Client(made, job([1], 5)).end(), Ended)


def test_jobs_that_were_cancelled_do_not_fill_the_queue():
    target = Shared(1)
    target.gate, target.free = threading.Event(), 3
    with scheduler(target, waiting=2) as made:
        talker = Client(made, job([1, 2], 300))
        talker.next()
        gone = [Client(made, job([1], 5)) for _ in range(2)]
        with pytest.raises(Busy):
            Client(made, job([1], 5))
        for client in gone:
            client.ticket.cancel()
        waits = Client(made, job([1], 5))
        target.free = len(target.calls) + 4
        target.gate.set()
        for client in gone:
            assert isinstance(client.end(), Cancelled)
        assert isinstance(talker.end(), Ended)
        assert isinstance(waits.end(), Ended)
        assert made.totals.cancelled == 2


@given(
    st.lists(st.tuples(prompts, st.booleans(), st.booleans()), min_size=1, max_size=10),
    st.integers(1, 3),
    costs_of_copies,
)
@settings(max_examples=60)
def test_a_private_answer_uses_no_cells_and_leaves_none(jobs, slots, copy_cost):
    """Nobody can tell from the counts what others have asked in private."""
    target = Shared(slots, copy_cost=copy_cost)
    seen = list[list[int]]()  # prompts and answers of those that are not private
    with scheduler(target, reads=64) as made:
        for prompt, private, cancels in jobs:
            client = Client(made, job(prompt, 12, caches=not private))
            if cancels:
                client.next()
                client.ticket.cancel()
            ended = client.end()
            assert isinstance(ended, Ended)
            assert client.tokens == alone(prompt, 12)[: len(client.tokens)]
            longest = max((common(prompt, text) for text in seen), default=0)
            assert ended.stats.cached_tokens <= (0 if private else longest)
            if not private:
                seen.append([*prompt, *client.tokens])
        held = [cells.ids for cells in target._cells]
    for ids in held:
        assert not ids or any(common(ids, text) == len(ids) for text in seen)


def common(some: list[int], others: list[int]) -> int:
    pairs = enumerate(zip(some, others, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(some), len(others)))


def test_a_private_answer_under_way_is_not_copied_from():
    target = Shared(2, copy_cost=10)
    target.gate, target.free = threading.Event(), 1
    with scheduler(target) as made:
        first = Client(made, job([*SYSTEM, 1], 50, caches=False))
        assert isinstance(first.next(), list)
        second = Client(made, job([*SYSTEM, 2], 5))
        target.gate.set()
        ended = second.end()
        assert isinstance(ended, Ended)
        assert ended.stats.cached_tokens == 0
        assert isinstance(first.end(), Ended)
        assert first.tokens == alone([*SYSTEM, 1], 50)
    assert not target.copies


@pytest.mark.parametrize("error", [ModelError("broken"), RuntimeError("a bug")])
def test_a_private_answer_that_fails_leaves_no_cells(error):
    class Failing(Shared):
        def rows(self, request: Request) -> Rows:
            if len(request.context) > 20:
                raise error
            return super().rows(request)

    target = Failing(1)
    with scheduler(target) as made:
        failed = Client(made, job([1, 2, 3], 100, caches=False))
        assert isinstance(failed.end(), ModelError)
        assert target._cells[0].ids == []


def test_a_common_prefix_does_not_cost_a_conversation():
    """Two conversations with one long system prompt keep a slot each."""
    target = Shared(2, copy_cost=20)
    talks = [[*SYSTEM, *[i] * 30] for i in range(2)]
    with scheduler(target) as made:
        for turn in range(3):
            for talk in talks:
                client = Client(made, job(talk, 8))
                ended = client.end()
                assert isinstance(ended, Ended)
                if turn:
                    assert ended.stats.cached_tokens >= len(talk) - 3
                talk += [*client.tokens, 4, 4]
    assert len(target.copies) == 1


def test_a_conversation_stays_in_its_slot_though_its_last_answer_is_dropped():
    """Templates remove the thoughts of earlier answers."""
    target = Shared(3, copy_cost=20)
    prompt = [*SYSTEM, 1]
    with scheduler(target) as made:
        for turn in range(3):
            ended = Client(made, job(prompt, 100)).end()
            assert isinstance(ended, Ended)
            assert ended.stats.cached_tokens >= (turn and len(prompt) - 4)
            prompt += [2, 3, 4]
    assert not target.copies


def test_a_client_that_leaves_frees_its_slot_within_a_round():
    target = Shared(1)
    target.gate, target.free = threading.Event(), 1
    with scheduler(target, drafts=False) as made:
        first = Client(made, job([1], 390))
        assert isinstance(first.next(), list)
        second = Client(made, job([2], 5))
        first.ticket.cancel()
        target.gate.set()
        ended = first.end()
        assert isinstance(ended, Ended)
        assert ended.reason == "cancelled"
        assert isinstance(second.end(), Ended)
        assert second.tokens == alone([2], 5)
        first.ticket.cancel()  # it is over: nothing happens to the next one
        third = Client(made, job([3], 5))
        first.ticket.cancel()
        assert isinstance(third.end(), Ended)
        assert third.tokens == alone([3], 5)


@given(
    st.lists(st.tuples(prompts, st.integers(0, 6)), min_size=1, max_size=6),
    costs_of_copies,
)
@settings(max_examples=40)
def test_the_answers_of_others_survive_cancellations(jobs, copy_cost):
    with scheduler(Shared(3, copy_cost=copy_cost), reads=32) as made:
        clients = [Client(made, job(prompt, 15)) for prompt, _ in jobs]
        for client, (_, rounds) in zip(clients, jobs, strict=True):
            for _ in range(rounds):
                if not isinstance(client.next(), list):
                    break
            else:
                if rounds % 2:
                    client.ticket.cancel()
        whole = [Client(made, job(prompt, 15)) for prompt, _ in jobs]
        for client, (prompt, _) in zip(whole, jobs, strict=True):
            assert isinstance(client.end(), Ended)
            assert client.tokens == alone(prompt, 15)


def test_a_deadline_ends_an_answer_and_a_wait():
    target = Shared(1)
    target.gate = threading.Event()
    with scheduler(target) as made:
        late = time.monotonic() + 0.01
        first = Client(made, job([1], 300, deadline=late))
        second = Client(made, job([2], 300, deadline=late))
        time.sleep(0.02)
        target.gate.set()
        ended = first.end()
        assert isinstance(ended, Ended)
        assert ended.reason == "cancelled"
        assert isinstance(second.end(), Cancelled)


def test_too_many_are_sent_away():
    target = Shared(1)
    target.gate = threading.Event()
    with scheduler(target, waiting=2) as made:
        first = Client(made, job([1], 3))
        while made.queued:  # until it has its slot
            time.sleep(0.001)
        others = [Client(made, job([2], 3)) for _ in range(2)]
        with pytest.raises(Busy, match="2 requests are already waiting"):
            made.submit(job([3]), print)
        target.gate.set()
        for client in (first, *others):
            assert isinstance(client.end(), Ended)


def test_a_job_that_cannot_be_done_is_refused_alone():
    with scheduler(Shared(2)) as made:
        sound = Client(made, job([1], 30))
        wrong = Client(made, job([1] * 401))
        assert isinstance(wrong.end(), ConfigError)
        assert isinstance(sound.end(), Ended)
        assert sound.tokens == alone([1], 30)


def test_a_cell_cache_that_fails_at_the_end_is_told_to_its_client():
    class Failing(Shared):
        fails = True

        def end_turn(self, context: Context, sequence: int = 0) -> None:
            if self.fails:
                self.fails = False
                raise ModelError("broken")
            super().end_turn(context, sequence)

    with scheduler(Failing(1)) as made:
        assert isinstance(Client(made, job([1], 5)).end(), ModelError)
        sound = Client(made, job([2], 10))
        assert isinstance(sound.end(), Ended)
        assert sound.tokens == alone([2], 10)


@pytest.mark.parametrize("error", [ModelError("broken"), RuntimeError("a bug")])
def test_a_call_that_fails_ends_the_answers_in_it(error, caplog):
    class Failing(Shared):
        def rows(self, request: Request) -> Rows:
            if len(request.context) > 20:
                raise error
            return super().rows(request)

    with scheduler(Failing(2)) as made:
        failed = Client(made, job([1], 100))
        assert isinstance(failed.end(), ModelError)
        sound = Client(made, job([2], 10))
        assert isinstance(sound.end(), Ended)
        assert sound.tokens == alone([2], 10)
        assert made.totals.errors == 1


def test_closing_waits_for_answers_and_then_ends_them():
    target = Shared(1)
    with scheduler(target) as made:
        done = Client(made, job([1], 50))
        made.close(WAIT)
        assert isinstance(done.end(), Ended)
        assert done.tokens == alone([1], 50)
        with pytest.raises(ModelError, match="shutting down"):
            made.submit(job([1]), print)
    with scheduler(Shared(1, n_ctx=100_000)) as made:
        endless, waiting = (Client(made, job([1], 99_000)) for _ in range(2))
        assert isinstance(endless.next(), list)
        made.close()
        ended = endless.end()
        assert isinstance(ended, Ended)
        assert ended.reason == "cancelled"
        assert isinstance(waiting.end(), Cancelled)


def test_without_uniform_rows_strict_answers_are_computed_alone():
    target = Shared(2)
    target.uniform = False
    with scheduler(target, reads=64) as made:
        for slot in made._slots:
            slot.session.cascade.limits.exact = "strict"
        clients = [Client(made, job([i] * 150, 20)) for i in range(2)]
        for i, client in enumerate(clients):
            assert isinstance(client.end(), Ended)
            assert client.tokens == alone([i] * 150, 20)
    assert all(len(call) == 1 for call in target.calls)


@given(
    st.lists(
        st.lists(st.floats(0, 1), max_size=8).map(
            lambda odds: np.cumprod(odds).tolist()
        ),
        min_size=1,
        max_size=4,
    ),
    st.lists(st.floats(0.1, 10), min_size=8, max_size=32),
)
def test_the_joint_width_is_the_best_of_all(paths, times):
    def rate(width: int) -> float:
        right = sum(sum(path[: width - 1]) for path in paths)
        return (len(paths) + right) / times[len(paths) * width - 1]

    longest = 1 + max(map(len, paths))
    widths = range(1, min(longest, len(times) // len(paths)) + 1)
    found = best_joint_width(paths, times)
    assert rate(found) == pytest.approx(max(map(rate, widths)))


def test_slots_tell_what_they_do():
    target = Shared(2)
    target.gate = threading.Event()
    with scheduler(target) as made:
        assert [slot.state for slot in made.slots()] == ["idle", "idle"]
        client = Client(made, job([1, 2, 3], 10))
        while not any(slot.state == "reading" for slot in made.slots()):
            time.sleep(0.001)
        target.gate.set()
        client.end()
        states = made.slots()
    assert {slot.state for slot in states} == {"idle"}
    assert max(slot.context for slot in states) == 13
