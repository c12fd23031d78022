"""Clients that ask one question after the other, and measure the streams."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from time import perf_counter
from typing import Any


@dataclass
class Stream:
    """A streamed answer. All times are in seconds."""

    started: float
    events: list[float] = field(default_factory=list)  # when text arrived
    tokens: int = 0
    prompt: int = 0
    drafted: int = 0
    error: str | None = None

    @property
    def to_first(self) -> float:
        """Time to the first text."""
        return self.events[0] - self.started

    @property
    def gaps(self) -> list[float]:
        """Times between texts."""
        pairs = zip(self.events, self.events[1:], strict=False)
        return [after - before for before, after in pairs]

    @property
    def token_gaps(self) -> list[float]:
        """Times between tokens: 0 for those that arrived with another one.

        The token that ends an answer has no text and no gap.
        """
        together = max(0, self.tokens - 1 - len(self.events))
        return [*self.gaps, *[0.0] * together]


def ask(port: int, prompt: str, most: int, seconds: float = 600.0) -> Stream:
    """A greedy answer of at most `most` tokens as a stream."""
    body = {
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": most,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "cache_prompt": False,
    }
    stream = Stream(perf_counter())
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=seconds)
    try:
        headers = {"Content-Type": "application/json"}
        path = "/v1/chat/completions"
        connection.request("POST", path, json.dumps(body), headers)
        response = connection.getresponse()
        if response.status != http.client.OK:
            stream.error = f"status {response.status}"
            return stream
        for event in _events(response):
            _note(stream, event)
    except (OSError, ValueError) as error:
        stream.error = repr(error)
    finally:
        connection.close()
    return stream


def _events(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    for line in response:
        if line.startswith(b"data: {"):
            yield json.loads(line[6:])


def _note(stream: Stream, event: dict[str, Any]) -> None:
    choices = event.get("choices") or ()
    if any(choice["delta"].get("content") for choice in choices):
        stream.events.append(perf_counter())
    if usage := event.get("usage"):
        stream.tokens = usage["completion_tokens"]
        stream.prompt = usage["prompt_tokens"]
    if timings := event.get("timings"):
        stream.drafted = timings.get("draft_n", 0)
    if "error" in event:
        stream.error = event["error"]["message"]


def load(
    port: int, prompts: Sequence[str], streams: int, most: int, seconds: float
) -> tuple[list[Stream], float]:
    """All answers of `streams` clients, and how long they took.

    Every client asks for `seconds`; answers that have begun are read to their end.
    """
    numbers, found, lock = count(), list[Stream](), threading.Lock()
    began = perf_counter()

    def client() -> None:
        while perf_counter() < began + seconds:
            with lock:
                prompt = prompts[next(numbers) % len(prompts)]
            stream = ask(port, prompt, most)
            with lock:
                found.append(stream)

    clients = [threading.Thread(target=client) for _ in range(streams)]
    for one in clients:
        one.start()
    for one in clients:
        one.join()
    return found, perf_counter() - began
