"""Drafts change no token of an answer with tools, before a call or in it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecs.core.draft import Drafter
from edgecs.drafters.maxgram import MaxGram
from edgecs.grammar.draft_mask import DraftMask
from edgecs.grammar.lazy import LazyGrammar
from edgecs.grammar.mask import Grammar
from edgecs.grammar.trie import TokenTrie
from edgecs.sampling.chain import Choices, Rule, chooser
from edgecs.sampling.settings import Sampling
from edgecs.session.session import Session
from edgecs.testing.fakes import ByteTokenizer, ScriptedDrafter, TableModel
from edgecs.text.triggers import Triggers
from tests.server.servers import OPTIONS, WAIT, serving

SIZE = 257
TRIE = TokenTrie.of(ByteTokenizer(SIZE), SIZE)
PROMPT = list(b"abab ") * 4
# It begins often in random text, and has much to copy.
SMALL = LazyGrammar(
    Grammar.of_lark("test", 'start: /[ab]/ ("(xyxyxy" | "(xyzz") /[xy]{2}/ ")" "xyxy"'),
    Triggers(("a", "b")),
    ByteTokenizer(SIZE).piece,
)


def rule(sampling: Sampling) -> Rule:
    def choices(start: int) -> Choices:
        masks = SMALL.over(TRIE), DraftMask(SMALL.over(TRIE))
        return Choices(
            *(chooser(sampling, SIZE, mask=mask, start=start) for mask in masks)
        )

    return choices


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 1000))
def test_on_fakes(temperature: float, seed: int):
    model = TableModel(SIZE, seed)
    sampling = Sampling(temperature=temperature, seed=seed)

    def ids(*drafters: Drafter) -> tuple[list[int], int]:
        how: Any = {"draft_max": 6 if drafters else 0, "rule": rule(sampling)}
        with Session(model, ByteTokenizer(SIZE), drafters, **how) as session:
            found = [token.id for token in session.generate(PROMPT, max_tokens=600)]
            return found, session.stats.accepted

    plain, _ = ids()
    script = ScriptedDrafter([*PROMPT, *plain], wrong=0.3, vocab_size=SIZE, seed=seed)
    drafted, accepted = ids(script, MaxGram())
    assert drafted == plain
    assert accepted or len(plain) < 8
    text = bytes(token for token in plain if token < 256)
    begins = [at for at in map(text.find, (b"a", b"b")) if at >= 0]
    if begins:  # from there on it is what the grammar allows
        call = text[min(begins) :]
        assert call[1:3] in (b"(x", b"(") or len(call) < 3
        assert len(call) <= 15


@pytest.fixture(scope="module")
def url(tiny_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("tools")
    options = replace(OPTIONS, n_ctx=2048)
    with serving(tiny_gguf, folder, slots=1, options=options) as address:
        yield address


PARAMETERS = {
    "type": "object",
    "properties": {
        "way": {"enum": ["northwards", "southwards"]},
        "back": {"enum": ["northwards", "southwards"]},
        "steps": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["way", "back", "steps"],
}
TOOLS = [{"type": "function", "function": {"name": "go", "parameters": PARAMETERS}}]


def answer(url: str, **more: Any) -> dict[str, Any]:
    body = {
        "messages": [{"role": "user", "content": "go"}],
        "tools": TOOLS,
        "max_tokens": 400,
        "logprobs": True,
        "parallel_tool_calls": False,
        **more,
    }
    reply = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=WAIT)
    assert reply.status_code == 200, reply.text
    found: dict[str, Any] = reply.json()
    return found


@pytest.mark.parametrize("temperature", [0, 0.8])
@pytest.mark.parametrize("choice", ["auto", "required"])
def test_on_a_model(url: str, temperature: float, choice: str):
    settings = {"temperature": temperature, "seed": 3, "tool_choice": choice}
    on, off = (answer(url, **settings, speculative=x) for x in (True, False))
    said = [
        [one["id"] for one in body["choices"][0]["logprobs"]["content"]]
        for body in (on, off)
    ]
    assert said[0] == said[1]
    if choice == "required":
        (call,) = on["choices"][0]["message"]["tool_calls"]
        assert json.loads(call["function"]["arguments"]).keys() == {
            "way",
            "back",
            "steps",
        }
        inside = on["speculative"]["in_tool_calls"]
        assert inside["accepted"] > 0
        assert inside["tested"] >= inside["accepted"]
        assert off["speculative"]["in_tool_calls"]["tested"] == 0
