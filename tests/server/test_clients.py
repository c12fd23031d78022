"""Clients as people have them: what they send and read works unchanged."""

from __future__ import annotations

import json
from collections.abc import Iterator

import openai
import pytest

MESSAGES = [{"role": "user", "content": "hello hello hello"}]
USUAL = {"model": "tiny", "messages": MESSAGES, "max_tokens": 16, "temperature": 0}


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    base = f"{url}/v1"
    with openai.OpenAI(base_url=base, api_key="none", max_retries=0) as made:
        yield made


class TestOpenAI:
    def test_a_chat_streamed_or_not(self, client: openai.OpenAI):
        whole = client.chat.completions.create(**USUAL)
        said = whole.choices[0].message.content
        assert said
        assert whole.usage
        assert whole.usage.total_tokens > whole.usage.completion_tokens
        options = {"include_usage": True}
        chunks = list(
            client.chat.completions.create(**USUAL, stream=True, stream_options=options)
        )
        texts = [c.choices[0].delta.content or "" for c in chunks if c.choices]
        assert "".join(texts) == said
        usage = chunks[-1].usage
        assert usage
        assert usage.completion_tokens == whole.usage.completion_tokens

    def test_a_stream_that_is_closed_early(self, client: openai.OpenAI):
        with client.chat.completions.create(**USUAL, stream=True) as stream:
            next(iter(stream))
        assert client.chat.completions.create(**USUAL).choices

    def test_a_schema(self, client: openai.OpenAI):
        schema = {
            "type": "object",
            "properties": {"ok": {"type": "boolean"}},
            "required": ["ok"],
            "additionalProperties": False,
        }
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        reply = client.chat.completions.create(
            **{**USUAL, "max_tokens": 100}, response_format=form
        )
        content = reply.choices[0].message.content
        assert content
        assert isinstance(json.loads(content)["ok"], bool)

    def test_log_probabilities_and_choices(self, client: openai.OpenAI):
        reply = client.chat.completions.create(
            **USUAL, n=2, logprobs=True, top_logprobs=2
        )
        assert len(reply.choices) == 2
        stated = reply.choices[0].logprobs
        assert stated
        assert stated.content
        assert len(stated.content[0].top_logprobs) == 2

    def test_completions_and_models(self, client: openai.OpenAI):
        reply = client.completions.create(model="tiny", prompt="hello", max_tokens=4)
        assert reply.choices[0].finish_reason in ("stop", "length")
        assert [model.id for model in client.models.list()] == ["tiny"]
        assert client.models.retrieve("tiny").id == "tiny"

    def test_errors_are_its_own(self, client: openai.OpenAI):
        with pytest.raises(openai.BadRequestError, match="temperature"):
            client.chat.completions.create(**{**USUAL, "temperature": -1})
        with pytest.raises(openai.NotFoundError, match="no model 'other'"):
            client.models.retrieve("other")
        long = [{"role": "user", "content": "x" * 600}]
        with pytest.raises(openai.BadRequestError, match="context holds 512"):
            client.chat.completions.create(**{**USUAL, "messages": long})
