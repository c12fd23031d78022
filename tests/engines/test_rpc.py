"""Targets whose layers are on workers: the same answers, and clear ends."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from edgecs.drafters.registry import usual_sources
from edgecs.engines.llama import rpc
from edgecs.engines.load_options import LoadOptions
from edgecs.engines.offload import MARGIN
from edgecs.engines.workers.addresses import Address, parse_addresses
from edgecs.errors import ConfigError, EdgecsError, OutOfMemory, WorkerError
from edgecs.runtime.loader import OWN_HEAD, Loaded, load, load_drafter
from tests.workers import Started, needs_rpc, started

PROMPT = [1, 2, 3, 4, 5, 1, 2, 3]
COUNT = 24  # tokens of an answer
ALONE = LoadOptions(
    n_ctx=256,
    n_batch=64,
    threads=1,
    n_gpu_layers=0,
    kernels="llama",
    repack=False,
    huge_pages=False,
)


def remote(*workers: Started | str) -> LoadOptions:
    """The load options with all layers on these workers."""
    addresses = [one if isinstance(one, str) else one.address for one in workers]
    return LoadOptions(
        n_ctx=256, n_batch=64, threads=1, n_gpu_layers="all", rpc=",".join(addresses)
    )


@pytest.fixture(scope="module")
def pair() -> Iterator[list[Started]]:
    with ExitStack() as stack:
        yield [stack.enter_context(started()) for _ in range(2)]


@pytest.fixture
def no_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """A build of llama.cpp without the RPC backend."""
    monkeypatch.setattr(rpc, "_by_name", lambda: None)
    monkeypatch.setattr(rpc, "_file", lambda: None)


def said(loaded: Loaded, prompt: list[int] = PROMPT, *, widest: int = 0) -> list[int]:
    """A greedy answer. widest: tokens of the drafts, which Max-Gram writes."""
    loaded.target.reset()
    drafters = [source for source in usual_sources() if source.name == "mag"]
    with loaded.session(drafters if widest else (), widest) as session:
        return [token.id for token in session.generate(prompt, max_tokens=COUNT)]


@needs_rpc
@pytest.mark.parametrize("count", [1, 2])
def test_answers_are_those_of_one_process(
    tiny_gguf: Path, pair: list[Started], count: int
):
    with load(tiny_gguf, ALONE) as loaded:
        expected = said(loaded)
    with load(tiny_gguf, remote(*pair[:count])) as loaded:
        assert loaded.model.offload.layers == loaded.model.offload.total
        assert loaded.model.offload.device == ", ".join(p.address for p in pair[:count])
        buffers = [name for name in loaded.model.offload.buffers if "RPC" in name]
        assert len(buffers) == count
        for one in pair[:count]:
            assert any(one.address in name for name in buffers)
        assert said(loaded) == expected
        assert said(loaded, widest=8) == expected


@needs_rpc
def test_measurements_belong_to_the_workers(tiny_gguf: Path, pair: list[Started]):
    with load(tiny_gguf, ALONE) as loaded:
        alone = loaded.key()
    with load(tiny_gguf, remote(pair[0])) as loaded:
        one = loaded.key()
    with load(tiny_gguf, remote(pair[1])) as loaded:
        other = loaded.key()
    assert len({alone.slot, one.slot, other.slot}) == 3
    assert len({alone.bits, one.bits, other.bits}) == 3
    assert any(pair[0].address in text for text in one.differences(alone))


@needs_rpc
def test_drafters_stay_on_this_machine(tiny_gguf: Path, pair: list[Started]):
    options = remote(pair[0])
    with load(tiny_gguf, options) as loaded:
        drafter = load_drafter(tiny_gguf, loaded, options)
        with drafter:
            model = drafter.model.model  # type: ignore[attr-defined]
            assert model.workers is None
            assert not model.offload.layers
        with pytest.raises(EdgecsError, match="on other hosts"):
            load_drafter(OWN_HEAD, loaded)


@needs_rpc
def test_a_worker_that_is_killed_ends_the_answer_only(tiny_gguf: Path):
    with started() as first, started() as second, started() as third:
        with load(tiny_gguf, remote(first, second)) as loaded:
            whole = said(loaded)
            with loaded.session() as session:
                answer = session.generate(PROMPT, max_tokens=COUNT)
                ids = [next(answer).id for _ in range(5)]
                second.kill()
                with pytest.raises(WorkerError, match=f"{second.address} was lost"):
                    ids.extend(token.id for token in answer)
                assert ids == whole[: len(ids)]  # nothing that was made up
                assert len(ids) < COUNT
            assert loaded.model.is_lost
            assert loaded.target.snapshot() is None
            with loaded.session() as again, pytest.raises(WorkerError, match="lost"):
                list(again.generate(PROMPT, max_tokens=COUNT))
        with pytest.raises(WorkerError, match="no worker answers"):
            load(tiny_gguf, remote(first, second))
        with load(tiny_gguf, remote(first, third)) as loaded:  # in the same process
            assert said(loaded) == whole


class CutOff:
    """A worker whose connections end after `left` bytes of replies altogether."""

    def __init__(self, address: str, left: int) -> None:
        (self._worker,), self._left = parse_addresses(address), left
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = str(Address(*self._listener.getsockname()[:2]))
        self._threads = [threading.Thread(target=self._serve)]
        self._threads[0].start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._threads.append(threading.Thread(target=self._pass, args=(client,)))
            self._threads[-1].start()

    def _pass(self, client: socket.socket) -> None:
        with client, socket.create_connection(self._worker) as worker:
            while self._left:
                ready, _, _ = select.select([client, worker], [], [])
                try:
                    data = ready[0].recv(1 << 16)
                    if ready[0] is client:
                        worker.sendall(data)
                    else:
                        client.sendall(data[: self._left])
                        self._left = max(0, self._left - len(data))
                except OSError:
                    return
                if not data:
                    return


@needs_rpc
@pytest.mark.parametrize("most", [1, 30, 50, 100, 200, 400, 900, 1600, 2600])
def test_a_worker_may_be_lost_at_any_moment(
    tiny_gguf: Path, pair: list[Started], most: int
):
    """While it is asked, while weights are sent, and in an answer: no abort."""
    with (
        closing(CutOff(pair[0].address, most)) as worker,
        pytest.raises(WorkerError),
        load(tiny_gguf, remote(worker.address)) as loaded,
    ):
        said(loaded)


@needs_rpc
def test_layers_that_do_not_fit_the_workers_are_an_error(tiny_gguf: Path):
    with (
        started("--memory", MARGIN >> 20) as worker,
        pytest.raises(OutOfMemory, match="no layer fits"),
    ):
        load(tiny_gguf, LoadOptions(n_ctx=256, rpc=worker.address))


@needs_rpc
def test_a_worker_offers_the_memory_that_it_is_told(tiny_gguf: Path):
    with started("--memory", 4321) as worker:
        assert "4321 MiB" in worker.said
        (device,) = rpc.Workers(worker.address).devices
        assert (device.free, device.description) == (4321 << 20, worker.address)


@pytest.mark.usefixtures("no_backend")
def test_a_build_without_the_backend_says_how_to_get_it(tiny_gguf: Path):
    with pytest.raises(ConfigError, match="make RPC=1"):
        load(tiny_gguf, remote("127.0.0.1:50052"))
    with pytest.raises(ConfigError, match="make RPC=1"):
        rpc.WorkerServer(threads=1)


def test_workers_without_layers_are_refused(tiny_gguf: Path):
    with pytest.raises(ConfigError, match="-ngl 0"):
        load(tiny_gguf, LoadOptions(n_gpu_layers=0, rpc="127.0.0.1:50052"))


def test_own_kernels_are_refused_with_workers(tiny_gguf: Path):
    options = LoadOptions(n_gpu_layers="all", kernels="portable", rpc="127.0.0.1:50052")
    with pytest.raises(ConfigError, match="on other hosts"):
        load(tiny_gguf, options)
