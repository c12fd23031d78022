"""llama.cpp's server over HTTP on loopback: its speculation, one type at a time.

xllamacpp runs it inside this process, from a wheel that is compiled for any processor
with AVX2.

Prompts are not cached. ngram-map-k and ngram-mod keep n-grams from one prompt to the
next and cannot be reset, so with them the server is restarted before every answer.
"""

from __future__ import annotations

import http.client
import importlib.metadata
import json
from typing import Any, Protocol

_KEEPING = {"ngram-map-k", "ngram-mod"}  # types that keep n-grams of earlier prompts


class Heard(Protocol):
    """Receives tokens and the counts of drafted tokens."""

    tokens: list[int]
    tested: int | None
    accepted: int | None

    def __call__(self, tokens: list[int]) -> None:
        """Receives tokens."""

    def begin(self) -> None:
        """Starts the clock: earlier work is not part of the answer."""


class InProcess:
    """xllamacpp's server, which selects its own port."""

    def __init__(self, hello: dict[str, Any]) -> None:
        import xllamacpp

        config, threads = hello["config"], hello["threads"]
        params = xllamacpp.CommonParams()
        params.model.path = hello["model"]
        params.n_ctx, params.n_parallel, params.n_gpu_layers = hello["n_ctx"], 1, 0
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        params.cache_ram_mib, params.verbosity = 0, 1
        speculative = params.speculative
        if kind := config.get("type"):
            name = f"COMMON_SPECULATIVE_TYPE_{_under(kind).upper()}"
            speculative.types = [getattr(xllamacpp.common_speculative_type, name)]
        if hello["draft"]:
            draft = speculative.draft
            draft.mparams.path, draft.n_gpu_layers = hello["draft"], 0
            draft.cpuparams.n_threads = draft.cpuparams_batch.n_threads = threads
        for size, value in _sizes(config).items():
            part = "draft" if config.get("draft") else _under(kind)
            setattr(getattr(speculative, part), size, value)
        self._server = xllamacpp.Server(params)
        self.port = int(self._server.listening_address.rsplit(":", 1)[1])

    def close(self) -> None:
        """Frees the model."""
        del self._server


class Adapter:
    """A server, restarted if it would keep n-grams of earlier prompts."""

    def __init__(self, hello: dict[str, Any]) -> None:
        self._hello = hello
        self._keeps = hello["config"].get("type") in _KEEPING
        self._fresh = True
        self._server = InProcess(hello)
        self.version = _version()
        self.children: tuple[int, ...] = ()

    def answer(self, question: dict[str, Any], heard: Heard) -> None:
        """Streams the answer, and repeats it if the stream left tokens out."""
        if self._keeps and not self._fresh:
            self._server.close()
            self._server = InProcess(self._hello)
        self._fresh = False
        body = {
            "prompt": question["ids"],
            "n_predict": question["n"],
            "temperature": 0.0,
            "cache_prompt": False,
            "return_tokens": True,
        }
        heard.begin()
        last = self._stream(body, heard)
        timings = last["timings"]
        heard.tested = timings.get("draft_n")
        heard.accepted = timings.get("draft_n_accepted")
        if self._hello["config"].get("type") and heard.tested is None:
            heard.tested = heard.accepted = 0
        # The stream leaves out tokens that end inside a character.
        if len(heard.tokens) != last["tokens_predicted"]:
            heard.tokens[:] = json.loads(_post(self._server.port, body).read())[
                "tokens"
            ]

    def _stream(self, body: dict[str, Any], heard: Heard) -> dict[str, Any]:
        """Passes tokens on and returns the last event."""
        for line in _post(self._server.port, {**body, "stream": True}):
            if not line.startswith(b"data: "):
                continue
            event: dict[str, Any] = json.loads(line[6:])
            if "error" in event:
                raise RuntimeError(event["error"]["message"])
            if event["tokens"]:
                heard(event["tokens"])
            if event["stop"]:
                return event
        raise RuntimeError("the stream ended before the answer")


def _version() -> str:
    """The package's version, which contains llama.cpp's build number."""
    version = importlib.metadata.version("xllamacpp")
    return f"xllamacpp {version}, llama.cpp b{version.split('.')[2]}"


def _sizes(config: dict[str, Any]) -> dict[str, int]:
    return {k: v for k, v in config.items() if k not in ("type", "draft")}


def _under(kind: str) -> str:
    return kind.replace("-", "_")


def _post(port: int, body: dict[str, Any]) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    headers = {"Content-Type": "application/json"}
    connection.request("POST", "/completion", json.dumps(body), headers)
    response = connection.getresponse()
    if response.status != http.client.OK:
        raise RuntimeError(json.loads(response.read())["error"]["message"])
    return response


def load(hello: dict[str, Any]) -> Adapter:
    """Starts the server of the first request."""
    return Adapter(hello)
