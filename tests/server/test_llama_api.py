"""llama-server's own API: /completion and /infill."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecs.core.context import Tokens
from edgecs.core.fim_tokens import FimTokens
from edgecs.runtime.model import load
from edgecs.server.apis.llama import routes
from edgecs.text.fim import Chunk, Infill, infill_prompt
from tests.server.scripted import ScriptedEngine, client
from tests.server.servers import OPTIONS, WAIT

FIM = FimTokens(251, 252, 253, 254, 255)


def post(engine: ScriptedEngine, path: str, **body: Any) -> Any:
    with client(engine) as http:
        return http.post(path, json=body)


def events(text: str) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in text.splitlines() if line]


def test_a_completion():
    reply = post(ScriptedEngine("one ", "two"), "/completion", prompt="say")
    assert reply.status_code == 200
    found = reply.json()
    assert found["content"] == "one two"
    assert (found["stop"], found["stop_type"], found["stopping_word"]) == (
        True,
        "eos",
        "",
    )
    assert (found["tokens_evaluated"], found["tokens_predicted"]) == (3, 2)
    assert (found["prompt"], found["model"]) == ("say", "tiny")
    assert found["tokens"] == []
    assert found["truncated"] is False
    assert found["timings"]["predicted_n"] == 2
    assert found["generation_settings"]["n_ctx"] == 512
    assert "completion_probabilities" not in found


@pytest.mark.parametrize(
    ("reason", "stop", "kind", "truncated"),
    [
        ("stop", None, "eos", False),
        ("stop", "END", "word", False),
        ("length", None, "limit", False),
        ("context", None, "limit", True),
        ("cancelled", None, "limit", False),
    ],
)
def test_why_it_stopped(reason: Any, stop: str | None, kind: str, truncated: bool):
    engine = ScriptedEngine("a", reason=reason, stop=stop)
    found = post(engine, "/completion", prompt="x").json()
    assert (found["stop_type"], found["truncated"]) == (kind, truncated)
    assert found["stopping_word"] == (stop or "")


def test_a_stream():
    reply = post(ScriptedEngine("a", "b"), "/completion", prompt="x", stream=True)
    assert reply.headers["content-type"].startswith("text/event-stream")
    *parts, last = events(reply.text)
    assert [part["content"] for part in parts] == ["a", "b"]
    assert not any(part["stop"] for part in parts)
    assert all(part["tokens"] == [65] for part in parts)
    assert last["stop"]
    assert last["content"] == ""
    assert last["tokens_predicted"] == 2


@pytest.mark.parametrize(
    ("prompt", "ids"),
    [
        ("ab", [97, 98]),
        ([97, 98], [97, 98]),
        ([1, "ab", 2], [1, 97, 98, 2]),
        (["ab", 2], [97, 98, 2]),
        ({"prompt_string": "ab"}, [97, 98]),
    ],
)
def test_forms_of_a_prompt(prompt: Any, ids: list[int]):
    engine = ScriptedEngine("x")
    found = post(engine, "/completion", prompt=prompt).json()
    assert engine.jobs[0].prompt.tolist() == ids
    assert found["content"] == "x"


def test_several_prompts_have_several_answers():
    engine = ScriptedEngine("x")
    prompts = ["a", [98, "c"], {"prompt_string": "d"}]
    found = post(engine, "/completion", prompt=prompts).json()
    assert [job.prompt.tolist() for job in engine.jobs] == [[97], [98, 99], [100]]
    assert [one["index"] for one in found] == [0, 1, 2]
    assert [one["prompt"] for one in found] == ["a", "bc", "d"]
    (single,) = post(ScriptedEngine("x"), "/completion", prompt=["a"]).json()
    assert single["content"] == "x"


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"prompt": [1, [2]]}, "mixes tokens and prompts"),
        ({"prompt": []}, "0 prompts"),
        ({"prompt": ["a"] * 17}, "17 prompts"),
        ({"prompt": [1000]}, "does not exist"),
        ({"prompt": ""}, "prompt is empty"),
        ({"prompt": {"prompt_string": "a", "multimodal_data": ["x"]}}, "images"),
        ({"prompt": "a", "n_probs": 1000}, "n_probs"),
        ({}, "prompt"),
        ({"prompt": "a", "grammar": "root ::= x y ::"}, ""),
    ],
)
def test_what_is_refused(body: dict[str, Any], told: str):
    reply = post(ScriptedEngine("x"), "/completion", **body)
    assert reply.status_code == 400
    assert told in reply.json()["error"]["message"]


def test_settings_reach_the_sampler():
    engine = ScriptedEngine("x")
    given_ = {
        "temperature": -1,
        "top_k": -5,
        "top_p": 1.5,
        "min_p": 0.1,
        "seed": 3,
        "ignore_eos": True,
        "logit_bias": [[65, -1.5], [66, False], ["C", 2]],
        "n_predict": 7,
        "stop": ["END"],
        "cache_prompt": False,
    }
    post(engine, "/completion", prompt="x", **given_)
    (job,) = engine.jobs
    sampling = job.rule[0]  # type: ignore[index]
    assert (sampling.temperature, sampling.top_k, sampling.top_p) == (0.0, 0, 1.0)
    assert (sampling.min_p, sampling.seed) == (0.1, 3)
    biases = dict(sampling.logit_bias)
    assert (biases[65], biases[67]) == (-1.5, 2.0)
    assert biases[66] == biases[max(engine.vocabulary.ends)] == -1e30
    assert (job.max_tokens, list(job.stop), job.caches) == (7, ["END"], False)


def test_without_tokens_the_prompt_is_only_read():
    for stream in (False, True):
        engine = ScriptedEngine("x")
        body = {"prompt": "abc", "n_predict": 0, "stream": stream}
        reply = post(engine, "/completion", **body)
        found = events(reply.text)[-1] if stream else reply.json()
        assert engine.jobs[0].max_tokens == 1
        assert (found["content"], found["tokens_predicted"]) == ("", 0)
        assert found["stop_type"] == "limit"


def test_probabilities_and_ids():
    body = {"prompt": "x", "n_probs": 2, "return_tokens": True}
    found = post(ScriptedEngine("a", "b"), "/completion", **body).json()
    assert found["tokens"] == [65, 65]
    first, _ = found["completion_probabilities"]
    assert (first["id"], first["logprob"]) == (65, -0.5)
    assert [one["id"] for one in first["top_logprobs"]] == [65, 66]


def test_chosen_fields():
    fields = ["content", "timings/predicted_n", "generation_settings/n_ctx", "no/such"]
    body = {"prompt": "x", "response_fields": fields}
    found = post(ScriptedEngine("a"), "/completion", **body).json()
    assert found == {
        "content": "a",
        "timings/predicted_n": 1,
        "generation_settings/n_ctx": 512,
    }


@pytest.mark.parametrize(("text", "ends"), [("a\nb", True), ("ab", False)])
def test_a_time_limit_ends_an_answer_that_has_a_line(
    monkeypatch: pytest.MonkeyPatch, text: str, ends: bool
):
    ended = []
    times = iter(range(0, 1000, 10))
    monkeypatch.setattr(routes.time, "monotonic", lambda: float(next(times)))
    monkeypatch.setattr(
        routes.Answers, "cancel_one", lambda self, choice: ended.append(choice)
    )
    body = {"prompt": "x", "t_max_predict_ms": 5000}
    assert post(ScriptedEngine(text, "c"), "/completion", **body).status_code == 200
    assert bool(ended) == ends


def test_an_infill():
    engine = ScriptedEngine("x")
    extra = [{"filename": "a.py", "text": "A"}]
    body = {"input_prefix": "B", "input_suffix": "C", "input_extra": extra}
    found = post(engine, "/infill", prompt="L", **body).json()
    assert found["content"] == "x"
    data = [
        *(254, *b"myproject\n", 255, *b"a.py\n", *b"A", 255, *b"filename\n"),
        *(251, *b"B", *b"L", 252, *b"C", 253),
    ]
    assert engine.jobs[0].prompt.tolist() == data


def test_an_infill_of_a_model_that_cannot():
    engine = ScriptedEngine("x")
    engine.fills = None
    reply = post(engine, "/infill", input_prefix="a", input_suffix="b")
    assert reply.status_code == 501
    message = reply.json()["error"]["message"]
    assert "tokenizer.ggml.fim_" in message
    assert not engine.jobs


def encode(text: str) -> Tokens:
    return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int32)


texts = st.text(st.characters(codec="ascii"), max_size=60)


@given(
    st.builds(
        Infill,
        texts,
        texts,
        texts,
        st.lists(st.builds(Chunk, texts, texts), max_size=3),
    ),
    st.booleans(),
    st.integers(0, 400),
    st.lists(st.just(7), max_size=1),
)
def test_what_fits_of_an_infill(
    infill: Infill, extended: bool, most: int, begin: list[int]
):
    """The line is always there, prefix and suffix end and begin at the place."""
    fim = FIM if extended else FimTokens(*FIM[:3])
    whole = infill_prompt(infill, fim, encode, most=10_000, begin=begin).tolist()
    found = infill_prompt(infill, fim, encode, most=most, begin=begin).tolist()
    least = len(infill.line) + 3 + len(begin)
    assert len(found) == min(len(whole), max(most, least))
    at, end = found.index(251), found.index(252)
    before, after = found[at + 1 : end], found[end + 1 : -1]
    assert found[-1] == 253
    assert bytes(before).endswith(infill.line.encode())
    left = bytes(before)[: len(before) - len(infill.line)]
    assert infill.prefix.encode().endswith(left)
    assert infill.suffix.encode().startswith(bytes(after))
    assert found[at - len(begin) : at] == begin
    extra = found[: at - len(begin)]
    assert whole[: whole.index(251) - len(begin)][-len(extra) :] == extra or not extra
    if extra:  # only once all that is nearer fits
        assert len(left) == len(infill.prefix)
        assert len(after) == len(infill.suffix)


@pytest.fixture
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=WAIT) as made:
        yield made


PROMPTS = ("hello hello hello", "one two one two", "x")


@pytest.mark.parametrize("together", [1, 4])
def test_ids_are_those_of_generate(
    http: httpx.Client, tiny_gguf: Path, folder: Path, together: int
):
    def asked(i: int) -> list[int]:
        prompt, seed = PROMPTS[i % 3], i % 2
        body = {"prompt": prompt, "n_predict": 20, "seed": seed, "temperature": 0.8}
        if i % 4 < 2:
            reply = http.post("/completion", json={**body, "return_tokens": True})
            return list(reply.json()["tokens"])
        reply = http.post("/completion", json={**body, "stream": True})
        return [id_ for part in events(reply.text) for id_ in part["tokens"]]

    with ThreadPoolExecutor(together) as pool:
        found = [*pool.map(asked, range(12))]
    with load(tiny_gguf, OPTIONS, drafts=(), folder=folder, offline=True) as model:
        for i, ids in enumerate(found):
            answer = model.generate(
                PROMPTS[i % 3], raw=True, max_tokens=20, temperature=0.8, seed=i % 2
            )
            assert ids == [token.id for token in answer]


def test_a_model_without_the_tokens_refuses_an_infill(http: httpx.Client):
    reply = http.post("/infill", json={"input_prefix": "a", "input_suffix": "b"})
    assert reply.status_code == 501
    assert "cannot fill in" in reply.json()["error"]["message"]
