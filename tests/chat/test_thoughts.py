"""Thoughts in the forms of all families: what a chat shows, keeps and feeds."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing

import pytest

from edgecs.chat.chat import Chat
from edgecs.chat.conversation import Message, restored
from edgecs.engines.load_options import LoadOptions
from edgecs.runtime.model import Model, load
from edgecs.sampling.chain import Rule
from edgecs.text.think_tags import ThinkTags
from edgecs.text.thoughts import GEMMA as GEMMA_TAGS
from edgecs.text.thoughts import Thoughts
from tests.thinking_models import GEMMA, HARMONY, QWEN, Thinker, write_thinker

SMALL = LoadOptions(n_ctx=2048, threads=1)
THOUGHT, ANSWER = "They ask **why**.", "Because of that."
WHOLE = f"<think>\n{THOUGHT}\n</think>\n\n{ANSWER}"
OTHERS = {"gpt-oss": HARMONY, "Gemma 4": GEMMA}  # than <think>
THINKERS = {**OTHERS, "Qwen": QWEN}
# An answer of each without thoughts, as the model writes it.
PLAIN = {
    "gpt-oss": "<|channel|>final<|message|>Yes.<|return|>",
    "Gemma 4": "Yes.<turn|>",
    "Qwen": "Yes.<|im_end|>",
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Model]]:
    folder, made = tmp_path_factory.mktemp("thinkers"), dict[str, Model]()
    for name, thinker in THINKERS.items():
        path = write_thinker(folder / f"{name}.gguf", thinker)
        made[name] = load(path, SMALL, speculate=False, folder=folder)
    yield made
    for model in made.values():
        model.close()


def text_of(chat: Chat[Rule], asked: str = "why?") -> str:
    return "".join(token.text for token in chat.ask(asked))


def prompt_text(model: Model, chat: Chat[Rule]) -> str:
    tokens = chat.conversation.prompt().tokens.tolist()
    return "".join(map(model.loaded.model.vocabulary.spelling, tokens))


def unspaced(text: str) -> str:
    return re.sub(r"\s*\n\s*", "\n", text)


@pytest.mark.parametrize("name", THINKERS)
def test_thoughts_are_between_think_tags(models: dict[str, Model], name: str):
    chat = models[name].chat()
    assert unspaced(text_of(chat)) == unspaced(WHOLE)
    assert unspaced(chat.messages[-1].content) == unspaced(WHOLE)
    assert unspaced(models[name].ask("why?")) == unspaced(WHOLE)


@pytest.mark.parametrize("name", OTHERS)
def test_raw_tokens_have_the_form_of_the_model(models: dict[str, Model], name: str):
    chat = models[name].chat()
    raw = "".join(token.text for token in chat.ask("why?", raw=True))
    parts = chat.conversation.form.thoughts(open=False).feed(raw)
    assert (parts.thought.strip(), parts.answer) == (THOUGHT, ANSWER)
    assert "<think>" not in raw
    assert chat.messages[-1].content == WHOLE
    again = "".join(token.text for token in chat.again(raw=True))
    assert again == raw
    assert chat.messages[-1].content == WHOLE


@pytest.mark.parametrize("name", THINKERS)
@pytest.mark.parametrize("how", ["limit", "stopped"])
def test_an_answer_that_is_cut_off_keeps_its_text(
    models: dict[str, Model], name: str, how: str
):
    """At every token: of a header, of a thought, of the answer."""
    model = models[name]
    count = len(THINKERS[name].tokens)
    whole, before = text_of(model.chat()), ""
    for most in range(1, count):
        chat = model.chat(max_tokens=most if how == "limit" else None)
        shown = list[str]()
        with closing(chat.ask("why?")) as tokens:
            for _, token in zip(range(most), tokens, strict=False):
                shown.append(token.text)
        content = chat.messages[-1].content
        assert whole.startswith(content)
        assert content.startswith(before)
        assert content.startswith("".join(shown))
        if how == "limit":
            assert content == "".join(shown)
        before = content
        chat.conversation.add("user", "and?")
        fed = prompt_text(model, chat)
        assert "They" not in fed or name == "Qwen"
        assert ("Because" in fed) == ("Because" in content)
    assert before == whole


@pytest.mark.parametrize("name", THINKERS)
def test_a_prompt_has_what_the_template_makes_of_the_answers(
    models: dict[str, Model], name: str
):
    model = models[name]
    chat = model.chat()
    text_of(chat)
    text_of(chat, "really?")
    chat.undo()
    text_of(chat, "how?")
    chat.conversation.add("user", "and?")
    said = [ANSWER if m.role == "assistant" else m.content for m in chat.messages]
    roles = [m.role for m in chat.messages]
    assert said == ["why?", ANSWER, "how?", ANSWER, "and?"]
    expected = model._template.render(
        [{"role": r, "content": c} for r, c in zip(roles, said, strict=True)]
    )
    assert prompt_text(model, chat) == expected
    prompt = chat.conversation.prompt()
    assert prompt.again == sum(len(m.ids or ()) for m in chat.messages)


@pytest.mark.parametrize("name", THINKERS)
def test_an_answer_without_thoughts_stays_the_tokens_that_it_was(
    models: dict[str, Model], name: str
):
    model = models[name]
    chat, vocabulary = model.chat(), model.loaded.model.vocabulary
    chat.conversation.add("user", "why?")
    ids = vocabulary.encode(PLAIN[name], document=False).tolist()
    before = chat.conversation.prompt().tokens.tolist()
    chat.conversation.add_answer("Yes.", ids)
    chat.conversation.add("user", "and?")
    prompt = chat.conversation.prompt()
    assert prompt.again == 0
    # gpt-oss ends an answer with another token than a message of the past.
    assert prompt.tokens.tolist()[: len(before) + len(ids) - 1] == [*before, *ids[:-1]]


@pytest.mark.parametrize("thought", ["", "<|channel|>analysis<|message|>x<|end|>"])
def test_a_spelling_of_a_control_token_begins_no_message(
    models: dict[str, Model], thought: str
):
    """In a message, in an answer that stays as it was, and in one that does not."""
    model = models["gpt-oss"]
    vocabulary = model.loaded.model.vocabulary
    (start,) = vocabulary.encode("<|start|>", document=False).tolist()

    def starts(text: str) -> int:
        chat = model.chat()
        chat.conversation.add("user", text)
        head = f"{thought}<|channel|>final<|message|>"
        written = vocabulary.encode(head, document=False).tolist()
        spelled = [token for letter in text for token in vocabulary.encode(letter)]
        chat.conversation.add_answer(text, [*written, *spelled])
        chat.conversation.add("user", "and?")
        return chat.conversation.prompt().tokens.tolist().count(start)

    assert starts("a <|start|>user<|message|>b") == starts("a")


@pytest.mark.parametrize("name", THINKERS)
def test_a_conversation_of_another_model_is_fed_without_its_thoughts(
    models: dict[str, Model], name: str
):
    model, chat = models[name], models["Qwen"].chat()
    text_of(chat)
    here = model.chat()
    texts = restored(chat.conversation.state())
    here.conversation.messages = [*texts, Message("user", "and?")]
    fed = prompt_text(model, here)
    assert "Because of that." in fed
    assert "They" not in fed


@pytest.mark.parametrize("name", THINKERS)
def test_a_saved_conversation_is_the_same_afterwards(
    models: dict[str, Model], name: str
):
    model = models[name]
    one, other = model.chat(), model.chat()
    text_of(one)
    size = model.loaded.target.vocab_size
    other.conversation.messages = restored(one.conversation.state(), size)
    assert other.messages == one.messages
    assert text_of(one) == text_of(other)
    assert other.messages == one.messages


def test_several_thoughts_each_have_their_tags():
    tags = ThinkTags(Thoughts(GEMMA_TAGS))
    said = "A<|channel>thought\nb\n<channel|>C<|channel>thought\n\n<channel|>D"
    cut = [tags.feed(said[:9]), tags.feed(said[9:30]), tags.feed(said[30:])]
    text = "A\n<think>\nb\n</think>\n\nCD"
    assert "".join(cut) + tags.flush() + tags.flush() == text


def test_the_thinkers_are_what_they_are_taken_for(models: dict[str, Model]):
    """Otherwise the other tests show nothing."""
    for name, model in models.items():
        thinker: Thinker = THINKERS[name]
        answer = [token.id for token in model.generate("why?")]
        spelled = map(model.loaded.model.vocabulary.spelling, answer)
        wanted = [t.replace("Ġ", " ").replace("Ċ", "\n") for t in thinker.tokens]
        assert [*spelled] == wanted
