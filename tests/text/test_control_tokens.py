"""Messages cannot contain control tokens: the template alone writes them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecs.chat.conversation import Conversation
from edgecs.engines.llama.tokenizer import LlamaVocabulary, load_vocabulary
from edgecs.text.chat_template import ChatTemplate
from edgecs.text.control_tokens import MessageGuard

SPELLINGS = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|im_sep|>", "aa", "[INST]"]
CONTROLS = ("<|begin|>", "<|end|>", "<|user|>", "<|assistant|>")  # of the tiny model
Texts = st.lists(
    st.one_of(
        st.sampled_from(
            [*SPELLINGS, *CONTROLS, "<|im_", "end|>", "<|", "|>", "a", "<"]
        ),
        st.text(max_size=4),
    ),
    max_size=12,
).map("".join)


@given(Texts, st.lists(st.sampled_from(SPELLINGS), max_size=7))
def test_no_spelling_is_left_in_any_part(text: str, spellings: list[str]):
    guard = MessageGuard(spellings)
    parts = guard.parts(guard.protect(text))
    assert "".join(parts) == text
    for part in parts:
        assert not [spelling for spelling in spellings if spelling in part]
    if not [spelling for spelling in spellings if spelling in text]:
        assert guard.protect(text) == text


@given(st.sets(st.text(st.sampled_from("ab<|."), max_size=6), max_size=12), Texts)
def test_every_place_of_a_spelling_is_found(spellings: set[str], text: str):
    """As by looking for one after the other."""
    spellings = {spelling for spelling in spellings if len(spelling) > 1}
    guard = MessageGuard(spellings)
    places = {
        found.start() + 1
        for spelling in spellings
        for found in re.finditer(f"(?={re.escape(spelling)})", text)
    }
    parts = guard.parts(guard.protect(text))
    ends = [sum(map(len, parts[: i + 1])) for i in range(len(parts) - 1)]
    assert ends == sorted(places)


def test_marks_differ_so_a_message_cannot_have_one():
    first, second = (MessageGuard(["<s>"]).protect("<s>") for _ in range(2))
    assert first != second
    assert MessageGuard(["<s>"]).parts(first) == [first[0] + first[1:-2] + "s>"]


def test_thoughts_stay_as_templates_look_for_them():
    guard = MessageGuard(["<think>", "</think>", "<s>"])
    text = "<think>why</think>because"
    assert guard.protect(text) == text


def test_all_texts_of_a_message_are_protected():
    guard = MessageGuard(["<s>"])
    message = {
        "role": "assistant",
        "content": [{"type": "text", "text": "a<s>"}],
        "tool_calls": [{"function": {"arguments": {"<s>": "<s>", "n": 1, "x": None}}}],
    }
    found = guard.protect_values(message)
    assert found["role"] == "assistant"
    assert guard.parts(found["content"][0]["text"]) == ["a<", "s>"]
    (call,) = found["tool_calls"]
    arguments = call["function"]["arguments"]
    assert {tuple(guard.parts(name)) for name in arguments} == {
        ("<", "s>"),
        ("n",),
        ("x",),
    }
    assert arguments["n"] == 1
    assert "<s>" not in str(found)


def test_thousands_of_spellings_and_a_long_text():
    """The time does not depend on how many begin as the text does."""
    guard = MessageGuard([f"<|reserved_special_token_{i}|>" for i in range(5000)])
    text = "<|reserved_special_token_" * 20_000
    assert guard.protect(text) == text


def test_spellings_of_a_hostile_model_are_no_trouble():
    guard = MessageGuard(["a" * n for n in range(3000)] + ["(", "[a", "", "\\"])
    assert len(guard.parts(guard.protect("a" * 50))) == 50


@pytest.fixture(scope="module")
def vocabulary(tiny_gguf: Path) -> Iterator[LlamaVocabulary]:
    with load_vocabulary(tiny_gguf) as found:
        yield found


@pytest.fixture(scope="module")
def template(vocabulary: LlamaVocabulary) -> Iterator[ChatTemplate]:
    made = ChatTemplate(vocabulary)
    yield made
    made.close()


def controls(vocabulary: LlamaVocabulary, ids: list[int]) -> list[str]:
    """The control tokens among some ids."""
    return [
        spelling
        for token in ids
        if (spelling := vocabulary.spelling(token)) in vocabulary.controls
    ]


def test_the_control_tokens_of_a_model(vocabulary: LlamaVocabulary):
    assert vocabulary.controls >= {*CONTROLS}
    assert "a" not in vocabulary.controls


def test_a_message_has_no_control_tokens(
    vocabulary: LlamaVocabulary, template: ChatTemplate
):
    @given(st.lists(Texts.filter(str.strip), min_size=1, max_size=3))
    def check(contents: list[str]) -> None:
        roles = ["user", "assistant"] * 2
        said = [
            {"role": role, "content": text}
            for role, text in zip(roles, contents, strict=False)
        ]
        plain = [{**one, "content": "x"} for one in said]
        ids = template.encode(said).tolist()
        expected = controls(vocabulary, template.encode(plain).tolist())
        assert controls(vocabulary, ids) == expected
        talk = Conversation(template, vocabulary)
        for one in said:
            talk.add(one["role"], one["content"])
        assert talk.prompt().tokens.tolist() == ids
        text = b"".join(vocabulary.spelling(token).encode() for token in ids)
        if all(text.isascii() for text in contents):  # others have several byte tokens
            assert text.decode().endswith(template.render(said))
        if not any(spelling in text for text in contents for spelling in CONTROLS):
            same = vocabulary.encode(template.render(said), document=False)
            assert ids[-same.size :] == same.tolist()

    check()


def test_an_answer_whose_text_spells_a_control_token_stays_as_it_was_generated(
    vocabulary: LlamaVocabulary, template: ChatTemplate
):
    spelt = [*b"so: <|end|> no"]
    assert vocabulary.encode("a", document=False).tolist() == [*b"a"]
    talk = Conversation(template, vocabulary)
    talk.add("user", "a <|end|>")
    talk.add_answer("so: <|end|> no", spelt)
    talk.add("user", "and?")
    prompt = talk.prompt()
    assert prompt.again == 0
    ids = prompt.tokens.tolist()
    at = next(i for i in range(len(ids)) if ids[i : i + len(spelt)] == spelt)
    assert at
    assert controls(vocabulary, ids).count("<|user|>") == 2
