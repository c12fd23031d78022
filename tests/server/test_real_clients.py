"""Clients as people install them, with the default model: they work unchanged."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import ollama
import openai
import pytest

from tests.server.servers import WAIT, serving

pytestmark = pytest.mark.model

MESSAGES: Any = [{"role": "user", "content": "Which animal is a llama like? Be brief."}]
USUAL: dict[str, Any] = {"model": "tiny", "messages": MESSAGES}
SCHEMA = {
    "type": "object",
    "properties": {"animal": {"type": "string", "maxLength": 20}},
    "required": ["animal"],
    "additionalProperties": False,
}


WEATHER = {
    "name": "get_weather",
    "description": "The weather in a city",
    "parameters": {
        "type": "object",
        "properties": {
            "city": {"type": "string", "maxLength": 20},
            "unit": {"enum": ["celsius", "fahrenheit"]},
        },
        "required": ["city", "unit"],
    },
}
QUESTION: Any = [{"role": "user", "content": "What is the weather in Paris?"}]


def checked(arguments: Any) -> None:
    assert arguments.keys() == {"city", "unit"}
    assert arguments["unit"] in ("celsius", "fahrenheit")


@pytest.fixture(scope="module")
def url(model_path: Path, folder: Path) -> Iterator[str]:
    with serving(model_path, folder) as address:
        yield address


@pytest.fixture(scope="module")
def said(url: str) -> str:
    """The answer to MESSAGES in 24 tokens."""
    body = {**USUAL, "max_tokens": 24, "temperature": 0}
    reply = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=WAIT)
    text: str = reply.json()["choices"][0]["message"]["content"]
    assert len(text.split()) > 5
    return text


class TestOpenAI:
    @pytest.fixture
    def made(self, url: str) -> Iterator[openai.OpenAI]:
        base = f"{url}/v1"
        with openai.OpenAI(base_url=base, api_key="none", max_retries=0) as made:
            yield made

    def test_chats(self, made: openai.OpenAI, said: str):
        body = {**USUAL, "max_tokens": 24, "temperature": 0}
        whole = made.chat.completions.create(**body, logprobs=True, top_logprobs=2)
        assert whole.choices[0].message.content == said
        stated = whole.choices[0].logprobs
        assert stated
        assert stated.content
        assert "".join(one.token for one in stated.content).startswith(said)
        chunks = made.chat.completions.create(**body, stream=True)
        assert "".join(c.choices[0].delta.content or "" for c in chunks) == said
        stop = said.split()[3]
        cut = made.chat.completions.create(**body, stop=stop)
        assert cut.choices[0].message.content == said[: said.index(stop)]

    def test_a_schema(self, made: openai.OpenAI):
        form: Any = {"name": "x", "schema": SCHEMA, "strict": True}
        reply = made.chat.completions.create(
            **USUAL, response_format={"type": "json_schema", "json_schema": form}
        )
        assert json.loads(reply.choices[0].message.content or "").keys() == {"animal"}

    def test_responses(self, made: openai.OpenAI, said: str):
        body = {"model": "tiny", "input": MESSAGES, "temperature": 0}
        reply = made.responses.create(**body, max_output_tokens=24)
        assert reply.output_text == said
        with made.responses.stream(**body, max_output_tokens=400) as stream:
            deltas = [e.delta for e in stream if e.type == "response.output_text.delta"]
        assert "".join(deltas).startswith(said)

    def test_tools(self, made: openai.OpenAI):
        """Its result is written down, and the conversation goes on."""
        tool: Any = {"type": "function", "function": WEATHER}
        body = {"model": "tiny", "messages": QUESTION, "tools": [tool]}
        must = {**body, "tool_choice": "required", "temperature": 0}
        whole = made.chat.completions.create(**must, parallel_tool_calls=False)
        (choice,) = whole.choices
        assert choice.finish_reason == "tool_calls"
        (call,) = choice.message.tool_calls or ()
        assert call.type == "function"
        checked(json.loads(call.function.arguments))
        with made.chat.completions.stream(**must, parallel_tool_calls=False) as stream:
            (same,) = stream.get_final_completion().choices
        (one,) = same.message.tool_calls or ()
        assert one.function.arguments == call.function.arguments
        result = {"role": "tool", "tool_call_id": call.id, "content": "rain"}
        turns: Any = [*QUESTION, choice.message, result]
        more = made.chat.completions.create(
            **{**body, "messages": turns}, tool_choice="none", max_tokens=8
        )
        assert more.choices[0].message.content

    def test_tools_in_responses(self, made: openai.OpenAI):
        tool: Any = {"type": "function", **WEATHER, "strict": True}
        body = {"model": "tiny", "input": QUESTION, "tools": [tool]}
        must: Any = {**body, "tool_choice": "required", "parallel_tool_calls": False}
        reply = made.responses.create(**must, temperature=0)
        (call,) = reply.output
        assert call.type == "function_call"
        checked(json.loads(call.arguments))
        with made.responses.stream(**must, temperature=0) as stream:
            kinds = {event.type for event in stream}
            (same,) = stream.get_final_response().output
        assert "response.function_call_arguments.delta" in kinds
        assert same.arguments == call.arguments

    def test_errors(self, made: openai.OpenAI):
        long: Any = [{"role": "user", "content": "llama " * 600}]
        with pytest.raises(openai.BadRequestError, match="context holds 512"):
            made.chat.completions.create(model="tiny", messages=long)
        with pytest.raises(openai.BadRequestError, match="temperature"):
            made.chat.completions.create(**USUAL, temperature=-1)

    def test_a_stream_that_is_closed_early_frees_its_slot(
        self, made: openai.OpenAI, url: str
    ):
        with made.chat.completions.create(**USUAL, stream=True) as stream:
            next(iter(stream))
        until = time.monotonic() + WAIT
        while any(slot["state"] != "idle" for slot in httpx.get(f"{url}/slots").json()):
            assert time.monotonic() < until


def test_anthropic(url: str, said: str):
    body: dict[str, Any] = {**USUAL, "extra_body": {"temperature": 0}}
    with anthropic.Anthropic(base_url=url, api_key="none", max_retries=0) as made:
        whole = made.messages.create(**body, max_tokens=24)
        assert [block.text for block in whole.content] == [said]
        assert whole.stop_reason == "max_tokens"
        stop = said.split()[3]
        with made.messages.stream(
            **body, max_tokens=24, stop_sequences=[stop]
        ) as stream:
            assert "".join(stream.text_stream) == said[: said.index(stop)]
            assert stream.get_final_message().stop_sequence == stop
        counted = made.messages.count_tokens(model="tiny", messages=MESSAGES)
        usage = whole.usage
        read = usage.input_tokens + (usage.cache_read_input_tokens or 0)
        assert counted.input_tokens == read


def test_anthropics_tools(url: str):
    schema = WEATHER["parameters"]
    tool: Any = {"name": "get_weather", "input_schema": schema}
    body: dict[str, Any] = {"model": "tiny", "messages": QUESTION, "tools": [tool]}
    body |= {"max_tokens": 200, "extra_body": {"temperature": 0}}
    body["tool_choice"] = {"type": "any", "disable_parallel_tool_use": True}
    with anthropic.Anthropic(base_url=url, api_key="none", max_retries=0) as made:
        whole = made.messages.create(**body)
        (call,) = whole.content
        assert whole.stop_reason == "tool_use"
        assert call.type == "tool_use"
        checked(call.input)
        with made.messages.stream(**body) as stream:
            (same,) = stream.get_final_message().content
        assert same.input == call.input


def test_ollamas_tools(url: str):
    """Ollama has no tool_choice, so the model may also answer with text."""
    tool = {"type": "function", "function": WEATHER}
    with ollama.Client(url) as made:
        options = {"temperature": 0, "num_predict": 200}
        reply = made.chat("tiny", QUESTION, tools=[tool], options=options)
        for call in reply.message.tool_calls or ():
            checked(call.function.arguments)
        assert reply.message.tool_calls or reply.message.content


def test_ollama(url: str, said: str):
    with ollama.Client(url) as made:
        options = {"temperature": 0, "num_predict": 24}
        assert made.chat("tiny", MESSAGES, options=options).message.content == said
        parts = made.chat("tiny", MESSAGES, options=options, stream=True)
        assert "".join(part.message.content or "" for part in parts) == said
        prompt = MESSAGES[0]["content"]
        assert made.generate("tiny", prompt, options=options).response == said
        reply = made.chat("tiny", MESSAGES, format=SCHEMA)
        assert json.loads(reply.message.content or "").keys() == {"animal"}
        (model,) = made.list().models
        assert model.details
        assert model.details.parameter_size == "134.52M"


def run(program: list[str], **variables: str) -> str:
    """The output of a program."""
    done = subprocess.run(
        program,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=WAIT * 2,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_llm(url: str, tmp_path: Path, said: str):
    pytest.importorskip("llm", reason="the extra `clients` is not installed")
    model = {"model_id": "edgecs", "model_name": "tiny", "api_base": f"{url}/v1"}
    # YAML reads JSON.
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps([model]))
    prompt = MESSAGES[0]["content"]
    for more in ([], ["--no-stream"]):
        options = ["-o", "temperature", "0", "-o", "max_tokens", "24", *more]
        command = [sys.executable, "-m", "llm", "-m", "edgecs", prompt, *options]
        out = run(command, LLM_USER_PATH=str(tmp_path), OPENAI_API_KEY="none")
        assert out.strip() == said.strip()


LANGCHAIN = """
import json, sys
from langchain_openai import ChatOpenAI
base, prompt, schema = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
usual = {"base_url": base, "api_key": "none", "model": "tiny", "temperature": 0}
model = ChatOpenAI(**usual, max_tokens=24)
streamed = "".join(part.text for part in model.stream(prompt))
schema |= {"title": "Animal", "description": "An animal."}
made = ChatOpenAI(**usual).with_structured_output(schema, method="json_schema")
whole = model.invoke(prompt)
print(json.dumps([whole.text, streamed, made.invoke(prompt), whole.usage_metadata]))
"""


def test_langchain(url: str, said: str):
    pytest.importorskip("langchain_openai", reason="the extra is not installed")
    program = [sys.executable, "-c", LANGCHAIN, f"{url}/v1"]
    out = run([*program, MESSAGES[0]["content"], json.dumps(SCHEMA)])
    whole, streamed, made, usage = json.loads(out)
    assert whole == streamed == said
    assert made.keys() == {"animal"}
    assert usage["output_tokens"] == 24


NODE = """
const { OpenAI } = require("openai");
const [baseURL, content] = process.argv.slice(1);
const client = new OpenAI({ baseURL, apiKey: "none", maxRetries: 0 });
const body = { model: "tiny", messages: [{ role: "user", content }] };
const usual = { ...body, temperature: 0, max_tokens: 24 };
(async () => {
  const whole = await client.chat.completions.create(usual);
  let streamed = "";
  const stream = await client.chat.completions.create({ ...usual, stream: true });
  for await (const part of stream)
    streamed += part.choices[0]?.delta?.content ?? "";
  const response = await client.responses.create(
    { model: "tiny", input: content, temperature: 0, max_output_tokens: 24 });
  let error = "";
  try { await client.chat.completions.create({ ...body, temperature: -1 }); }
  catch (caught) { error = `${caught.constructor.name} ${caught.status}`; }
  console.log(JSON.stringify(
    [whole.choices[0].message.content, streamed, response.output_text, error]));
})();
"""


def test_openai_in_node(url: str, said: str):
    modules = Path(sys.prefix) / "node_modules"
    node = shutil.which("node")
    if node is None or not (modules / "openai").exists():
        pytest.skip("needs node, and openai from npm in the virtual environment")
    program = [node, "-e", NODE, f"{url}/v1", MESSAGES[0]["content"]]
    out = run(program, NODE_PATH=str(modules))
    assert json.loads(out) == [said, said, said, "BadRequestError 400"]
