"""Thoughts in the formats of all families, with and without tools, in every API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from edgecs.testing.fakes import ByteTokenizer
from edgecs.toolcalls.form import AnswerForm, Channels
from tests.server.scripted import ScriptedEngine, client

GPT_OSS = "tools functions <|start|> <|channel|>analysis<|message|>"
GEMMA = "tools enable_thinking <|tool_call>call: <|channel>thought"
QWEN = 'tools <tool_call> "arguments" <think>'
ASKED = [{"role": "user", "content": "hello"}]
TOOLS = [{"type": "function", "function": {"name": "now"}}]
ANSWERS = {
    GPT_OSS: (
        ("<|channel|>", "analysis", "<|message|>", "I thi", "nk"),
        ("<|end|>", "<|start|>", "assistant", "<|channel|>final<|message|>", "Hi", "."),
    ),
    GEMMA: (("<|channel>", "thought\n", "I thi", "nk"), ("<channel|>", "Hi", ".")),
    QWEN: (
        ("<think>", "I thi", "nk"),
        ("</think>\n\n", "Hi."),
    ),
}


class Marked(ByteTokenizer):
    """Some texts are control tokens, which have no text in an answer."""

    texts: Mapping[int, str] = dict(
        enumerate(("<|channel|>", "<|message|>", "<|channel>", "<channel|>"), 300)
    )

    def encode(self, text: str, *, document: bool = True) -> Any:
        for token, spelling in self.texts.items():
            if text == spelling:
                return super().encode("\0")[:1] + token
        return super().encode(text)


def engine_of(template: str) -> ScriptedEngine:
    thought, answer = ANSWERS[template]
    engine = ScriptedEngine(*thought, *answer, template=template)
    engine.tokenizer = Marked()
    engine.n_ctx = 4096
    return engine


@pytest.mark.parametrize("template", ANSWERS)
@pytest.mark.parametrize(
    "more", [{}, {"tools": TOOLS}, {"tools": TOOLS, "tool_choice": "none"}]
)
def test_thoughts_are_apart_from_the_answer(template: str, more: dict[str, Any]):
    engine = engine_of(template)
    with client(engine) as made:
        body = made.post("/v1/chat/completions", json={"messages": ASKED, **more})
        (choice,) = body.json()["choices"]
    assert choice["message"]["reasoning_content"] == "I think"
    assert choice["message"]["content"] == "Hi."
    assert "incomplete_tool_calls" not in choice


@pytest.mark.parametrize("template", ANSWERS)
@pytest.mark.parametrize("tools", [[], [{"type": "function", "name": "now"}]])
def test_tokens_of_thoughts_are_counted(template: str, tools: Any):
    engine = engine_of(template)
    with client(engine) as made:
        body = made.post("/v1/responses", json={"input": "x", "tools": tools}).json()
    counted = body["usage"]["output_tokens_details"]["reasoning_tokens"]
    thought, _ = ANSWERS[template]
    begun = thought.index("I thi")  # the delimiters before it may be counted or not
    assert len(thought) - begun < counted <= len(thought) + 1


@pytest.mark.parametrize("template", [GPT_OSS, GEMMA])
@pytest.mark.parametrize("tools", [(), TOOLS])
def test_control_tokens_that_mark_thoughts_are_shown(template: str, tools: Any):
    engine = engine_of(template)
    with client(engine) as made:
        made.post("/v1/chat/completions", json={"messages": ASKED, "tools": tools})
        made.post("/v1/completions", json={"prompt": "x"})
    chat, plain = engine.jobs
    assert chat.shown is not None
    texts = {Marked.texts[token].encode() for token in chat.shown}
    assert texts == set(chat.shown.values())
    assert len(texts) == 2
    assert not plain.shown


@pytest.mark.parametrize("template", ANSWERS)
def test_other_apis_have_thoughts_apart_too(template: str):
    with client(engine_of(template)) as made:
        body = {"model": "tiny", "messages": ASKED, "max_tokens": 99}
        anthropic = made.post("/v1/messages", json=body).json()["content"]
        response = made.post("/v1/responses", json={"input": "x"}).json()["output"]
        said = made.post("/api/chat", json={**body, "think": True, "stream": False})
    assert [one["type"] for one in anthropic] == ["thinking", "text"]
    assert anthropic[0]["thinking"] == "I think"
    assert [one["type"] for one in response] == ["reasoning", "message"]
    assert said.json()["message"]["thinking"] == "I think"
    assert said.json()["message"]["content"] == "Hi."


def test_a_call_of_gpt_oss_without_tools_is_text():
    header = "<|channel|>commentary to=functions.now <|constrain|>json<|message|>"
    engine = ScriptedEngine(header, "{}", template=GPT_OSS)
    with client(engine) as made:
        reply = made.post("/v1/chat/completions", json={"messages": ASKED})
        (choice,) = reply.json()["choices"]
    assert choice["message"]["content"] == "{}"
    assert "incomplete_tool_calls" not in choice


def test_a_template_of_gpt_oss_without_tools_has_channels_and_written_calls():
    call = '<tool_call>{"name": "now", "arguments": {}}</tool_call>'
    rounds = ("<|channel|>analysis<|message|>Hm<|end|><|start|>assistant",)
    final = f"<|channel|>final<|message|>{call}"
    template = "<|channel|>analysis<|message|>"
    engine = ScriptedEngine(*rounds, final, template=template)
    engine.n_ctx = 4096
    with client(engine) as made:
        body = {"messages": ASKED, "tools": TOOLS}
        (choice,) = made.post("/v1/chat/completions", json=body).json()["choices"]
    assert choice["message"]["reasoning_content"] == "Hm"
    assert [one["function"]["name"] for one in choice["message"]["tool_calls"]] == [
        "now"
    ]


@pytest.mark.parametrize(
    ("path", "body", "effort"),
    [
        ("/v1/chat/completions", {"reasoning_effort": "high"}, "high"),
        ("/v1/chat/completions", {"reasoning_effort": "minimal"}, "low"),
        (
            "/v1/chat/completions",
            {"chat_template_kwargs": {"reasoning_effort": "low"}},
            "low",
        ),
        ("/v1/chat/completions", {}, None),
        ("/v1/responses", {"input": "x", "reasoning": {"effort": "xhigh"}}, "high"),
        ("/v1/messages", {"output_config": {"effort": "max"}}, "high"),
        ("/api/chat", {"think": "medium"}, "medium"),
        ("/api/chat", {"think": True}, None),
    ],
)
def test_the_effort_reaches_the_template(
    path: str, body: dict[str, Any], effort: str | None
):
    engine = engine_of(GPT_OSS)
    usual = {"model": "tiny", "messages": ASKED, "max_tokens": 9}
    with client(engine) as made:
        assert made.post(path, json={**usual, **body}).status_code == 200
    assert engine.efforts == [effort]


def test_an_unknown_effort_is_refused():
    with client(engine_of(GPT_OSS)) as made:
        body = {"messages": ASKED, "reasoning_effort": "<|end|>"}
        reply = made.post("/v1/chat/completions", json=body)
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == "reasoning_effort"


def test_an_effort_says_whether_to_think():
    engine = engine_of(GEMMA)
    with client(engine) as made:
        for effort in ("none", "high", None):
            body = {"messages": ASKED, "reasoning_effort": effort}
            made.post("/v1/chat/completions", json=body)
        options = {"enable_thinking": False}
        body = {"messages": ASKED, "chat_template_kwargs": options}
        made.post("/v1/chat/completions", json={**body, "reasoning_effort": "high"})
    assert [thinks for _, _, thinks in engine.prompts] == [False, True, None, False]


@pytest.mark.parametrize("template", ANSWERS)
def test_a_template_with_thoughts_can_think(template: str):
    assert AnswerForm.of(template).thinks
    assert not AnswerForm.of("{{ messages }}").thinks


@pytest.mark.parametrize("template", ANSWERS)
def test_parts_are_the_same_however_the_text_is_cut(template: str):
    thought, answer = ANSWERS[template]
    text = "".join((*thought, *answer))
    form = AnswerForm.of(template)
    for size in range(1, len(text) + 1):
        made = form.separator(None, open=False)
        assert made is not None
        found = [made.feed(text[at : at + size]) for at in range(0, len(text), size)]
        found.append(made.flush())
        assert "".join(one.thought for one in found) == "I think"
        assert "".join(one.answer for one in found) == "Hi."


def test_gemma_may_think_again_after_the_answer():
    made = AnswerForm.of(GEMMA).separator(None, open=False)
    assert made is not None
    said = made.feed("<|channel>thought\na<channel|>b<|channel>thought\n<channel|>c")
    assert said == ("a", "bc")


def test_channels_that_do_not_end_are_returned_at_the_end():
    channels = Channels()
    assert channels.feed("<|channel|>analysis<|message|>a <") == ("a ", "")
    assert channels.open
    assert channels.flush() == ("<", "")


CALL = {"name": "now", "arguments": "{}"}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (
            "/v1/messages",
            {
                "messages": [
                    *ASKED,
                    {
                        "role": "assistant",
                        "content": [
                            {"type": "thinking", "thinking": "So.", "signature": ""},
                            {"type": "redacted_thinking", "data": "x"},
                            {"type": "text", "text": "I look."},
                            {"type": "tool_use", "id": "a", "name": "now", "input": {}},
                        ],
                    },
                    {
                        "role": "user",
                        "content": [
                            {"type": "tool_result", "tool_use_id": "a", "content": "9"}
                        ],
                    },
                ]
            },
        ),
        (
            "/v1/responses",
            {
                "input": [
                    *ASKED,
                    {
                        "type": "reasoning",
                        "summary": [{"type": "summary_text", "text": "no"}],
                        "content": [{"type": "reasoning_text", "text": "So."}],
                    },
                    {"role": "assistant", "content": "I look."},
                    {"type": "function_call", "call_id": "a", **CALL},
                    {"type": "function_call_output", "call_id": "a", "output": "9"},
                ]
            },
        ),
        (
            "/api/chat",
            {
                "messages": [
                    *ASKED,
                    {
                        "role": "assistant",
                        "content": "I look.",
                        "thinking": "So.",
                        "tool_calls": [{"function": {"name": "now", "arguments": {}}}],
                    },
                    {"role": "tool", "tool_name": "now", "content": "9"},
                ]
            },
        ),
    ],
)
@pytest.mark.parametrize("template", [GPT_OSS, QWEN])
def test_thoughts_before_a_call_stay_in_the_history(
    path: str, body: dict[str, Any], template: str
):
    engine = engine_of(template)
    with client(engine) as made:
        reply = made.post(path, json={"model": "tiny", "max_tokens": 9, **body})
    assert reply.status_code == 200, reply.text
    (user, said, result), _, _ = engine.prompts[0]
    assert user == ASKED[0]
    assert result["content"] == "9"
    assert said["tool_calls"][0]["function"] == {"name": "now", "arguments": {}}
    if template is GPT_OSS:  # whose template refuses content beside thinking
        assert (said["content"], said["thinking"]) == ("", "So.\n\nI look.")
    else:
        assert (said["content"], said["reasoning_content"]) == ("I look.", "So.")


def test_items_of_thoughts_belong_to_the_answer_after_them():
    def thought(text: str) -> dict[str, Any]:
        return {
            "type": "reasoning",
            "summary": [{"type": "summary_text", "text": text}],
        }

    items = [
        *ASKED,
        {"type": "reasoning", "encrypted_content": "x", "summary": []},
        {"role": "assistant", "content": "One."},
        thought("a"),
        {"role": "assistant", "content": "Two."},
        thought("b"),
        {"type": "function_call", "call_id": "a", **CALL},
        thought("c"),
        {"type": "function_call", "call_id": "b", **CALL},
        {"type": "function_call_output", "call_id": "a", "output": "9"},
        {"type": "function_call_output", "call_id": "b", "output": "9"},
    ]
    engine = engine_of(QWEN)
    with client(engine) as made:
        assert made.post("/v1/responses", json={"input": items}).status_code == 200
    turns, _, _ = engine.prompts[0]
    said = [one for one in turns if one["role"] == "assistant"]
    assert [(one["content"], one.get("reasoning_content")) for one in said] == [
        ("One.", None),
        ("Two.", "a"),
        ("", "b\n\nc"),
    ]
    assert [call["id"] for call in said[2]["tool_calls"]] == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("no such city", "Error: no such city"),
        ([{"type": "text", "text": "no"}], "Error: no"),
        ("", "Error"),
    ],
)
def test_the_model_is_told_that_a_tool_failed(content: Any, told: str):
    call = {"type": "tool_use", "id": "a", "name": "now", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "a", "content": content}
    messages = [
        *ASKED,
        {"role": "assistant", "content": [call]},
        {"role": "user", "content": [{**result, "is_error": True}]},
    ]
    engine = engine_of(GPT_OSS)
    body = {"model": "tiny", "max_tokens": 9, "messages": messages}
    with client(engine) as made:
        assert made.post("/v1/messages", json=body).status_code == 200
    assert engine.prompts[0][0][-1]["content"] == told
