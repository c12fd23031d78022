"""Embeddings over HTTP are those of llama-cpp-python, in both APIs' forms."""

from __future__ import annotations

import asyncio
import base64
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import llama_cpp
import numpy as np
import ollama
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgecs.engines.llama.embedder import LlamaEmbedder
from edgecs.engines.load_options import LoadOptions
from edgecs.errors import Cancelled
from edgecs.runtime.embedding import LoadedEmbedder, load_embedder
from edgecs.server.app import Serving
from edgecs.server.batching.job import Busy
from edgecs.server.http.guard import Access
from edgecs.server.models.embedding_engine import Embedded, EmbeddingEngine
from tests.embedding_models import EMBEDDING_MODELS, TRAINED, WIDTH
from tests.server.servers import WAIT, serving

TEXTS = ["hello llamas", "one two three", "a llama is an animal of the andes. " * 9]
Rows = NDArray[np.float64]


@pytest.fixture(scope="module", params=EMBEDDING_MODELS)
def model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("embedding") / f"{request.param}.gguf"
    return EMBEDDING_MODELS[request.param](path)


@pytest.fixture(scope="module")
def url(model: Path, folder: Path) -> Iterator[str]:
    options = LoadOptions(n_batch=64, threads=1)
    with serving(model, folder, options=options) as address:
        yield address


@pytest.fixture
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=WAIT) as client:
        yield client


@pytest.fixture(scope="module")
def reference(model: Path) -> Any:
    made = llama_cpp.Llama(
        str(model),
        embedding=True,
        verbose=False,
        n_ctx=TRAINED,
        n_batch=TRAINED,
        n_ubatch=TRAINED,
        n_threads=1,
    )
    yield made
    made.close()


def rows(reply: httpx.Response) -> Rows:
    assert reply.status_code == 200, reply.text
    body = reply.json()
    assert body["object"] == "list"
    assert [one["index"] for one in body["data"]] == [*range(len(body["data"]))]
    return np.array([one["embedding"] for one in body["data"]])


def ask(http: httpx.Client, given: object, **more: object) -> httpx.Response:
    return http.post("/v1/embeddings", json={"input": given, "model": "x", **more})


def close(some: Rows, others: Rows) -> bool:
    """Kernels and precisions differ in the last digits."""
    return bool(np.abs(some - others).max() < 2e-3)


def unit(found: Rows) -> Rows:
    return found / np.linalg.norm(found, axis=-1, keepdims=True)


def test_they_are_those_of_llama_cpp_python(http: httpx.Client, reference: Any):
    expected = unit(np.array([reference.embed(text) for text in TEXTS]))
    found = rows(ask(http, TEXTS))
    assert found.shape == (len(TEXTS), WIDTH)
    assert close(found, expected)
    assert not close(found[[0]], found[[1]])
    reply = ask(http, TEXTS[0])
    assert close(rows(reply)[0], expected[0])
    ids = reference.tokenize(TEXTS[0].encode())
    usage = {"prompt_tokens": len(ids), "total_tokens": len(ids)}
    assert reply.json()["usage"] == usage
    assert close(rows(ask(http, ids))[0], expected[0])
    assert close(rows(ask(http, [ids, ids])), expected[[0, 0]])


@given(st.lists(st.integers(1, 60), min_size=1, max_size=150))
@settings(max_examples=15)
def test_texts_do_not_depend_on_their_neighbours(url: str, sizes: list[int]):
    """Whatever the calls they are divided into: 64 sequences, 512 tokens."""
    texts = [[5 + (i + size) % 80 for i in range(size)] for size in sizes]
    body = {"input": texts, "model": "x"}
    found = rows(httpx.post(f"{url}/v1/embeddings", json=body, timeout=WAIT))
    for size in {sizes[0], sizes[-1], max(sizes)}:
        body = {"input": texts[sizes.index(size)], "model": "x"}
        alone = rows(httpx.post(f"{url}/v1/embeddings", json=body, timeout=WAIT))
        assert close(found[sizes.index(size)], alone[0])


def test_base64_and_fewer_dimensions(http: httpx.Client):
    plain = rows(ask(http, TEXTS))
    coded = ask(http, TEXTS, encoding_format="base64").json()["data"]
    data = [base64.b64decode(one["embedding"]) for one in coded]
    same = np.array([np.frombuffer(one, dtype="<f4") for one in data])
    assert (same == plain.astype(np.float32)).all()
    cut = rows(ask(http, TEXTS, dimensions=10))
    assert np.allclose(cut, unit(plain[:, :10]), atol=1e-6)
    assert np.allclose(np.linalg.norm(plain, axis=1), 1, atol=1e-6)


def test_a_text_that_is_too_long_is_refused_or_shortened(
    http: httpx.Client, reference: Any
):
    long = "one two " * 300
    reply = ask(http, long)
    assert reply.status_code == 400
    assert reply.json()["error"]["type"] == "exceed_context_size_error"
    assert f"the model takes {TRAINED}" in reply.json()["error"]["message"]
    reply = ask(http, ["hello", long], truncate=True)
    shortened = rows(reply)
    ids = reference.tokenize(long.encode())
    kept = [*ids[: TRAINED - 1], ids[-1]]
    assert close(shortened[1], rows(ask(http, kept))[0])
    found = http.post("/api/embed", json={"model": "x", "input": long})
    assert close(np.array(found.json()["embeddings"][0]), shortened[1])
    assert found.json()["prompt_eval_count"] == TRAINED
    body = {"model": "x", "input": long, "truncate": False}
    assert http.post("/api/embed", json=body).status_code == 400


def test_ollamas_forms(http: httpx.Client, reference: Any):
    found = http.post("/api/embed", json={"model": "x", "input": TEXTS}).json()
    assert close(np.array(found["embeddings"]), rows(ask(http, TEXTS)))
    one = http.post("/api/embed", json={"model": "x", "input": TEXTS[0]}).json()
    assert len(one["embeddings"]) == 1
    none = http.post("/api/embed", json={"model": "x", "input": []}).json()
    assert none["embeddings"] == []
    old = http.post("/api/embeddings", json={"model": "x", "prompt": TEXTS[0]}).json()
    expected = np.array(reference.embed(TEXTS[0]))
    assert np.abs(np.array(old["embedding"]) - expected).max() < 0.01


def test_unmodified_clients(url: str, http: httpx.Client):
    expected = rows(ask(http, TEXTS))
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none") as made:
        found = made.embeddings.create(model="x", input=TEXTS)
        assert close(np.array([one.embedding for one in found.data]), expected)
    with ollama.Client(url) as client:
        several = client.embed(model="x", input=TEXTS)
        assert close(np.array(several.embeddings), expected)
        assert len(client.embeddings(model="x", prompt="hello").embedding) == WIDTH


def test_commands_do_not_ask_a_server_with_it_for_text(
    edgecs: Any, model: Path, url: str
):
    done = edgecs("generate", "-m", model, "-p", "hello", "--server", url)
    assert done.code == 2
    assert "the model there gives embeddings and writes no text" in done.err


def test_it_writes_no_text(edgecs: Any, model: Path):
    done = edgecs("generate", "-m", model, "-p", "hello", "-n", 3)
    assert done.code == 3
    assert "is an embedding model" in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "input: Field required"),
        ({"input": []}, "input is empty"),
        ({"input": [[]]}, "a text is empty"),
        ({"input": [[1, 10**6]]}, "token 1000000 does not exist"),
        ({"input": [-1]}, "token -1 does not exist"),
        ({"input": ["x", 3]}, "input"),
        ({"input": "x", "dimensions": WIDTH + 1}, f"have {WIDTH} numbers"),
        ({"input": "x", "dimensions": 0}, "dimensions"),
        ({"input": "x", "encoding_format": "int8"}, "encoding_format"),
        ({"input": ["x"] * 2049}, "input"),
        ({"input": [[7] * 500] * 700}, "more than 300000 tokens"),
    ],
)
def test_what_cannot_be_embedded_is_said(http: httpx.Client, body: Any, says: str):
    reply = http.post("/v1/embeddings", json=body)
    assert reply.status_code == 400
    message = reply.json()["error"]["message"]
    assert says in message
    assert "\n" not in message


def test_what_the_other_routes_say(http: httpx.Client):
    for path, body in (
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
        ("/v1/completions", {"prompt": "x"}),
        ("/apply-template", {"messages": [{"role": "user", "content": "x"}]}),
    ):
        reply = http.post(path, json=body)
        assert reply.status_code == 400
        assert "use /v1/embeddings" in reply.json()["error"]["message"]
    assert http.get("/health").status_code == 200
    (entry,) = http.get("/v1/models").json()["data"]
    assert entry["meta"]["n_vocab"] > 80
    assert http.get("/props").json()["embedding_length"] == WIDTH
    assert http.get("/slots").json() == []
    assert len(http.get("/api/ps").json()["models"]) == 1
    shown = http.post("/api/show", json={"model": "tiny"}).json()
    assert shown["capabilities"] == ["embedding"]
    ids = http.post("/tokenize", json={"content": "hello"}).json()["tokens"]
    text = http.post("/detokenize", json={"tokens": ids}).json()["content"]
    assert text.strip() == "hello"
    rows(ask(http, "hello"))
    assert 'edgecs:embedding_texts_total{model="tiny"}' in http.get("/metrics").text


def test_a_model_that_writes_text_gives_no_embeddings(tiny_gguf: Path, folder: Path):
    with (
        serving(tiny_gguf, folder) as url,
        httpx.Client(base_url=url, timeout=WAIT) as http,
    ):
        for path in ("/v1/embeddings", "/api/embed", "/api/embeddings"):
            body = {"input": "x", "prompt": "x", "model": "tiny"}
            reply = http.post(path, json=body)
            assert reply.status_code == 400
            assert "states no pooling; embedding models do" in reply.text


class TestLimits:
    """Those of the other routes."""

    @pytest.fixture
    def loaded(self, tmp_path: Path) -> Iterator[LoadedEmbedder]:
        path = EMBEDDING_MODELS["bert"](tmp_path / "bert.gguf")
        with load_embedder(path, LoadOptions(threads=1)) as loaded:
            yield loaded

    def test_key_and_body(self, tmp_path: Path, folder: Path):
        path = EMBEDDING_MODELS["bert"](tmp_path / "bert.gguf")
        state = Serving(access=Access("secret"), most_body=1000)
        with (
            serving(path, folder, state) as url,
            httpx.Client(base_url=url, timeout=WAIT) as http,
        ):
            assert ask(http, "x").status_code == 401
            http.headers["authorization"] = "Bearer secret"
            assert ask(http, "x").status_code == 200
            assert ask(http, "x" * 1000).status_code == 413

    def test_the_queue_has_an_end(
        self, loaded: LoadedEmbedder, monkeypatch: pytest.MonkeyPatch
    ):
        """One request is computed and one may wait; clients that leave make room."""
        gate = threading.Event()
        compute = LlamaEmbedder._compute

        def slow(self: LlamaEmbedder, texts: Any) -> None:
            assert gate.wait(WAIT)
            compute(self, texts)

        monkeypatch.setattr(LlamaEmbedder, "_compute", slow)
        engine = EmbeddingEngine(loaded, "bert", waiting=1)
        texts = [engine.tokens_of("hello", truncate=False)]

        async def go() -> None:
            def ask(seconds: float = WAIT) -> asyncio.Task[Embedded]:
                return asyncio.create_task(engine.embed(texts, seconds))

            first, second, third = ask(), ask(), ask()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            with pytest.raises(Busy, match="1 requests are already waiting"):
                await third
            second.cancel()
            with pytest.raises(asyncio.CancelledError):
                await second
            late = ask(0.0)
            await asyncio.sleep(0)
            gate.set()
            assert (await first).tokens == texts[0].size
            with pytest.raises(Cancelled, match="not finished in time"):
                await late
            gate.clear()
            last = ask(), ask()
            await asyncio.sleep(0)
            engine.cancel()
            gate.set()
            ended = await asyncio.gather(*last, return_exceptions=True)
            assert isinstance(ended[1], Cancelled)
            assert engine.busy == 0
            assert 1 <= engine.requests <= 2

        try:
            asyncio.run(go())
        finally:
            gate.set()
            engine.close()

    def test_an_unwanted_request_ends_before_its_next_call(
        self, loaded: LoadedEmbedder
    ):
        ids = np.array([2, 9, 3], dtype=np.int32)
        calls: list[int] = []

        def unwanted() -> bool:
            calls.append(1)
            return len(calls) > 2

        with pytest.raises(Cancelled):
            loaded.embedder.embed([ids] * 1000, unwanted)
        assert len(calls) == 3
