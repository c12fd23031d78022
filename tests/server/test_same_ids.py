"""The ids of every answer are those of `Model.generate` with the same seed.

That holds for any mix of requests: greedy and sampled, with and without drafts, whole
and streamed, alone and beside others, some of whose clients leave in mid-stream.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecs.decoding.kmatrix import KMatrix
from edgecs.engines.load_options import KernelChoice, LoadOptions
from edgecs.runtime.model import Model, load
from tests.server.servers import WAIT, serving

SYSTEM = "List the numbers one to nine, then nine to one, then one to nine again. "
PROMPTS = (
    "Say: one two three, one two three, one two",
    SYSTEM + "Begin with nine.",
    SYSTEM + "Begin with one.",
    "Hi",
)


class Ask(NamedTuple):
    """An answer that is asked for. raw: without a chat template."""

    prompt: str
    raw: bool
    temperature: float
    seed: int
    most: int


class Wish(NamedTuple):
    """How a client asks. leaves: events after which it closes its connection."""

    ask: Ask
    speculative: bool
    stream: bool
    leaves: int | None = None


asks = st.builds(
    Ask,
    st.sampled_from(PROMPTS),
    st.booleans(),
    st.sampled_from([0.0, 0.8]),
    st.integers(0, 2),
    st.sampled_from([1, 7, 40]),
)
stayers = st.builds(Wish, asks, st.booleans(), st.booleans())
leavers = st.builds(
    Wish,
    asks.map(lambda ask: ask._replace(most=300)),
    st.booleans(),
    st.just(True),
    st.integers(0, 30),
)
parties = st.tuples(
    st.lists(stayers, min_size=1, max_size=6), st.lists(leavers, max_size=4)
).flatmap(lambda both: st.permutations([*both[0], *both[1]]))


@dataclass
class Both:
    """A server, and the same model without one, with and without drafts."""

    url: str
    models: list[Model]
    known: dict[Ask, list[int]] = field(default_factory=dict)

    @cached_property
    def http(self) -> httpx.Client:
        limits = httpx.Limits(max_connections=16)
        return httpx.Client(base_url=self.url, timeout=WAIT, limits=limits)

    def expected(self, ask: Ask) -> list[int]:
        if ask not in self.known:
            (found,) = {self._said(model, ask) for model in self.models}
            self.known[ask] = list(found)
        return self.known[ask]

    def _said(self, model: Model, ask: Ask) -> tuple[int, ...]:
        answer = model.generate(
            ask.prompt,
            raw=ask.raw,
            max_tokens=ask.most,
            temperature=ask.temperature,
            seed=ask.seed,
        )
        return tuple(token.id for token in answer)

    def received(self, wish: Wish) -> list[int] | None:
        """The ids that a client gets; None: it has left before the end."""
        ask = wish.ask
        body: dict[str, Any] = {
            "max_tokens": ask.most,
            "temperature": ask.temperature,
            "seed": ask.seed,
            "speculative": wish.speculative,
            "stream": wish.stream,
            "token_details": True,
        }
        if ask.raw:
            path, body["prompt"] = "/v1/completions", ask.prompt
        else:
            path = "/v1/chat/completions"
            body["messages"] = [{"role": "user", "content": ask.prompt}]
        if not wish.stream:
            reply = self.http.post(path, json=body)
            assert reply.status_code == 200, reply.text
            return ids_of(reply.json())
        return self._streamed(path, body, wish.leaves)

    def _streamed(
        self, path: str, body: dict[str, Any], leaves: int | None
    ) -> list[int] | None:
        found, read = list[int](), 0
        with self.http.stream("POST", path, json=body) as stream:
            assert stream.status_code == 200
            if leaves == 0:
                return None
            for line in stream.iter_lines():
                if not line.startswith("data: "):
                    continue
                read += 1
                if line == "data: [DONE]":
                    return found
                if read == leaves:
                    return None
                found += ids_of(json.loads(line[6:]))
        raise AssertionError("a stream has no end")


def ids_of(body: Any) -> list[int]:
    assert "error" not in body, body
    return [
        one["id"]
        for choice in body["choices"]
        for one in choice.get("token_details", [])
    ]


@contextmanager
def both(
    path: Path,
    folder: Path,
    options: LoadOptions,
    drafts: tuple[str, ...] = (),
    matrix: KMatrix | None = None,
) -> Iterator[Both]:
    """With four slots. Strict, so that it also holds with llama.cpp's kernels."""
    exact: Any = {"exact": "strict"}
    with (
        load(path, options, drafts=(), folder=folder, offline=True, **exact) as drafted,
        load(path, options, speculate=False, folder=folder, offline=True) as plain,
        serving(
            path,
            folder,
            slots=4,
            options=options,
            drafts=drafts,
            matrix=matrix,
            **exact,
        ) as url,
    ):
        made = Both(url, [drafted, plain])
        with made.http:
            yield made


def check(made: Both, wishes: list[Wish], together: int) -> None:
    with ThreadPoolExecutor(together) as pool:
        answers = [*pool.map(made.received, wishes)]
    for wish, ids in zip(wishes, answers, strict=True):
        if ids is not None:
            assert ids == made.expected(wish.ask), wish


KERNELS: list[KernelChoice] = ["auto", "llama"]


@pytest.fixture(scope="module", params=KERNELS)
def tiny_both(
    request: pytest.FixtureRequest, tiny_gguf: Path, folder: Path
) -> Iterator[Both]:
    options = LoadOptions(n_ctx=512, n_batch=64, threads=1, kernels=request.param)
    with both(tiny_gguf, folder, options) as made:
        yield made


@given(parties, st.sampled_from([1, 4]))
@settings(max_examples=40)
def test_ids_are_those_of_generate(tiny_both: Both, wishes: list[Wish], together: int):
    check(tiny_both, wishes, together)


@pytest.fixture(scope="module", params=KERNELS)
def default_both(
    request: pytest.FixtureRequest, model_path: Path, folder: Path
) -> Iterator[Both]:
    with both(
        model_path, folder, LoadOptions(n_ctx=512, kernels=request.param)
    ) as made:
        yield made


@pytest.mark.model
@given(parties, st.sampled_from([1, 4]))
@settings(max_examples=5)
def test_ids_of_the_default_model_are_those_of_generate(
    default_both: Both, wishes: list[Wish], together: int
):
    check(default_both, wishes, together)
