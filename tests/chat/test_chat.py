"""Conversations as ids; what is left out when they grow too long; files of them."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecs.chat.archive import Owner, read, save
from edgecs.chat.chat import Chat
from edgecs.chat.conversation import Conversation, restored
from edgecs.chat.overflow import Overflow, fit
from edgecs.drafters.maxgram import MaxGram
from edgecs.engines.kv_snapshot import KVSnapshot
from edgecs.engines.load_options import LoadOptions
from edgecs.errors import ConfigError, ContextFull, ModelError
from edgecs.runtime.loader import Loaded, load
from edgecs.session.session import Session
from edgecs.testing.fakes import ByteTokenizer, CachingModel
from edgecs.text.chat_template import ChatTemplate

# The end token of a ByteTokenizer is spelt "\x03".
PLAIN = (
    "{% for m in messages %}<{{ m.role[0] }}>{{ m.content }}\x03{% endfor %}"
    "{% if add_generation_prompt %}<a>{% endif %}"
)
STRIPS = PLAIN.replace("{{ m.content }}", "{{ m.content.split('|')[-1] }}")


@cache
def template(source: str, kind: type[ByteTokenizer] = ByteTokenizer) -> ChatTemplate:
    """Shared: each one has a process."""
    tokenizer = kind()
    tokenizer.chat_template = source
    return ChatTemplate(tokenizer)


def talk(source: str = PLAIN) -> Conversation:
    return Conversation(template(source), ByteTokenizer())


def ids(text: str) -> list[int]:
    return list(text.encode())


# What is fed.


answers = st.lists(
    st.tuples(st.text(max_size=5), st.binary(min_size=1, max_size=8), st.booleans()),
    max_size=5,
)


@given(answers, st.text(min_size=1, max_size=5))
def test_answers_stay_the_tokens_that_they_were(
    turns: list[tuple[str, bytes, bool]], last: str
):
    """Whatever bytes were said, each turn feeds what came before and its own end."""
    here = talk()
    fed: list[int] = []
    for asked, said, ended in turns:
        here.add("user", asked)
        prompt = here.prompt()
        assert prompt.again == 0
        assert prompt.tokens.tolist()[: len(fed)] == fed
        generated = [*said, *([256] if ended else [])]
        here.add_answer(said.decode("utf-8", "replace"), generated)
        fed = [*prompt.tokens.tolist(), *generated]
    here.add("user", last)
    prompt = here.prompt()
    assert prompt.again == 0
    assert prompt.tokens.tolist()[: len(fed)] == fed
    # An answer that was cut short is closed by the template.
    closing = ids("\x03") if turns and not turns[-1][2] else []
    assert prompt.tokens.tolist()[len(fed) :] == [*closing, *ids(f"<u>{last}\x03<a>")]


def test_a_template_that_rewrites_history_is_followed_and_told():
    here = talk(STRIPS)
    here.add("user", "hi")
    first = here.prompt().tokens.tolist()
    here.add_answer("think|yes", [*ids("think|yes"), 256])
    here.add("user", "ho")
    prompt = here.prompt()
    assert prompt.again == len("think|yes") + 1
    assert prompt.tokens.tolist() == ids("<u>hi\x03<a>yes\x03<u>ho\x03<a>")
    assert prompt.tokens.tolist()[: len(first)] == first


def test_an_end_token_that_the_template_spells_otherwise_is_not_fed():
    here = talk(PLAIN.replace("\x03", "~"))
    here.add("user", "hi")
    here.add_answer("yes", [*ids("yes"), 256])
    here.add("user", "ho")
    assert here.prompt().tokens.tolist() == ids("<u>hi~<a>yes~<u>ho~<a>")


def test_the_system_message_comes_first_and_can_be_changed():
    here = talk()
    here.add("user", "hi")
    for content in ("one", "two", None, ""):
        here.set_system(content)
        expected = f"<s>{content}\x03" if content else ""
        assert here.prompt().tokens.tolist() == ids(f"{expected}<u>hi\x03<a>")


# A chat.


def chat(
    *,
    n_ctx: int = 400,
    spec: bool = False,
    source: str = PLAIN,
    tokenizer: ByteTokenizer | None = None,
    **more: Any,
) -> Chat:
    tokenizer = tokenizer or ByteTokenizer()
    target = CachingModel(257, n_ctx=n_ctx)
    drafters, most = ([MaxGram()], 4) if spec else ([], 0)
    session = Session(target, tokenizer, drafters, draft_max=most)
    here = template(source, type(tokenizer))
    return Chat(session, Conversation(here, tokenizer), **more)


def said(chat: Chat, text: str, most: int | None = 20) -> list[int]:
    chat.max_tokens = most
    return [token.id for token in chat.ask(text)]


def said_again(chat: Chat) -> list[int]:
    chat.max_tokens = 20
    return [token.id for token in chat.again()]


steps = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.text(min_size=1, max_size=8)),
        st.tuples(st.just("again"), st.just("")),
        st.tuples(st.just("undo"), st.just("")),
        st.tuples(st.just("stop early"), st.text(min_size=1, max_size=4)),
    ),
    max_size=6,
)


@given(steps, st.sampled_from(["", "a", "e"]))
def test_turns_are_the_same_with_and_without_drafts(
    todo: list[tuple[str, str]], stop: str
):
    """Whatever was done before: regenerated, taken back, cut short, ended by a stop."""
    both = [chat(spec=spec, stop=[stop], max_tokens=12) for spec in (False, True)]
    for what, text in todo:
        heard = []
        for one in both:
            tokens: list[int] = []
            try:
                if what == "undo":
                    one.undo()
                elif what == "again":
                    tokens = [t.id for t in one.again()]
                else:
                    for token in one.ask(text):
                        tokens.append(token.id)
                        if what == "stop early" and len(tokens) == 3:
                            break
            except ConfigError as error:
                heard.append(str(error))
            heard.append(str(tokens))
        half = len(heard) // 2
        assert heard[:half] == heard[half:]
        assert both[0].messages == both[1].messages


def test_an_answer_is_the_same_when_it_is_given_again():
    one = chat()
    first = said(one, "hi")
    assert said_again(one) == first
    assert [m.role for m in one.messages] == ["user", "assistant"]


def test_a_later_turn_computes_only_what_is_new():
    one = chat()
    said(one, "hello")
    said(one, "ho")
    stats = one.session.stats
    # What closes the answer, the message, what opens the next answer, and one token
    # of the answer before, whose cell is cut off at the end of a turn.
    assert stats.prompt_tokens - stats.cached_tokens == 1 + len("\x03<u>ho\x03<a>")


def test_a_message_without_an_answer_is_taken_back():
    one = chat()
    said(one, "hi")
    before = list(one.messages)
    one.session.target.cancel.set()
    assert said(one, "ho") == []
    assert one.finish_reason == "cancelled"
    assert list(one.messages) == before
    assert [*one.again()] == []
    assert list(one.messages) == before
    with pytest.raises(ConfigError, match="is empty"):
        said(one, " ")
    assert list(one.messages) == before


def test_there_is_nothing_to_give_again_or_take_back_at_first():
    one = chat()
    assert one.undo() == []
    with pytest.raises(ConfigError, match="there is no message yet"):
        [*one.again()]


# Too long.


POLICIES: list[Overflow] = ["stop", "shift", "truncate-middle"]


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=6),
    st.integers(16, 90),
    st.sampled_from(POLICIES),
    st.integers(1, 50),
)
def test_no_length_of_turns_breaks_a_chat_or_loses_a_message(
    lengths: list[int], n_ctx: int, policy: Overflow, most: int
):
    one = chat(n_ctx=n_ctx, overflow=policy)
    expected: list[str] = []
    for i, length in enumerate(lengths):
        text = (chr(97 + i) * length)[:length]
        try:
            tokens = said(one, text, most)
        except ContextFull:
            tokens = []
        if tokens:
            expected += [text, "answer"]
            assert one.finish_reason in ("stop", "length", "context")
            assert len(tokens) == most or one.finish_reason != "length"
        shown = [m.content if m.role == "user" else "answer" for m in one.messages]
        assert shown == expected


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("over", [-1, 0, 1])
def test_a_prompt_at_the_end_of_the_context(policy: Overflow, over: int):
    n_ctx = 64
    one = chat(n_ctx=n_ctx, overflow=policy)
    said(one, "a" * 10, 8)
    before = list(one.messages)
    fed = one.conversation.prompt().tokens.size - len("<a>") + len("<u>\x03<a>")
    text = "b" * (n_ctx + over - fed)
    one.conversation.add("user", text)
    assert one.conversation.prompt().tokens.size == n_ctx + over
    one.undo()
    if policy == "stop" and over > 0:
        with pytest.raises(ContextFull, match=r"--overflow shift"):
            said(one, text)
        assert list(one.messages) == before
        return
    tokens = said(one, text, 5)
    if policy == "stop":
        assert one.finish_reason == "context"
        assert len(tokens) == 1 - over
    else:
        assert one.finish_reason == "length"
        assert len(tokens) == 5
        assert one.messages[0].left_out
        assert one.asked.left_out == 2


class Speaks(ByteTokenizer):
    """No token ends an answer."""

    def __init__(self) -> None:
        super().__init__()
        self.ends = frozenset()


def test_an_answer_goes_on_behind_the_end_of_the_context():
    """Also in the middle of a stop string."""
    free = chat(n_ctx=60, overflow="shift", tokenizer=Speaks())
    said(free, "a" * 10, 8)
    free.max_tokens = None
    text = "".join(t.text for t in free.ask("b" * 10))
    assert free.finish_reason == "context"  # its last turn fills the context by itself
    assert free.asked.left_out == 2
    tokens = free.messages[-1].ids
    assert tokens is not None
    assert len(tokens) > 30
    other = chat(n_ctx=60, overflow="shift", tokenizer=Speaks(), stop=[text[12:17]])
    said(other, "a" * 10, 8)
    other.max_tokens = None
    assert "".join(t.text for t in other.ask("b" * 10)) == text[:12]
    assert other.finish_reason == "stop"


def test_the_first_turn_stays_with_truncate_middle_and_long_messages_are_cut():
    here = talk()
    here.set_system("sys")
    for i in range(4):
        here.add("user", f"question {i} " + "x" * 20)
        here.add_answer("yes", ids("yes"))
    here.add("user", "last")
    _, gone = fit(here, 100, "truncate-middle")
    assert [m.content[:10] for m in here.messages if m.left_out] == (
        ["question 1", "yes", "question 2", "yes", "question 3", "yes"]
    )
    assert gone == 6
    here.messages.clear()
    here.add("user", "begin" + "y" * 500 + "end")
    prompt, gone = fit(here, 100, "truncate-middle")
    text = bytes(prompt.tokens.tolist()).decode()
    assert gone == 0
    assert prompt.tokens.size <= 100
    assert text.startswith("<u>begin")
    assert "end\x03<a>" in text
    assert "characters left out" in text
    assert here.messages[0].content == "begin" + "y" * 500 + "end"


# In a file.


def owner(**changes: Any) -> Owner:
    fields = {"model": "m", "fingerprint": "f", "loading": "l", "tokens": 272}
    return Owner(**{**fields, **changes})


def spoken() -> Conversation:
    here = talk()
    here.set_system("Sei höflich 🙂")
    here.add("user", "مرحبا")
    here.add_answer("ok", [111, 107, 256])
    return here


CELLS = KVSnapshot([1, 2, 3], b"\0\1\2", (3, np.arange(4, dtype=np.float32)))


def test_what_was_saved_comes_back(tmp_path: Path):
    path = tmp_path / "deep" / "talk.edgecs"
    here = spoken()
    save(path, here.state(), owner(), CELLS, {"model": "x"})
    found = read(path, owner())
    assert found.messages == here.messages
    assert found.settings == {"model": "x"}
    assert found.reason is None
    assert found.cells is not None
    assert found.cells[:2] == CELLS[:2]
    assert found.cells.row is not None
    assert CELLS.row is not None
    assert np.array_equal(found.cells.row[1], CELLS.row[1])
    first = path.read_bytes()
    save(path, here.state(), owner(), CELLS, {"model": "x"})
    assert path.read_bytes() == first
    assert [p.name for p in path.parent.iterdir()] == ["talk.edgecs"]


def test_cells_are_for_the_same_way_to_load(tmp_path: Path):
    path = tmp_path / "talk"
    save(path, spoken().state(), owner(), CELLS)
    other = read(path, owner(loading="other"))
    assert other.cells is None
    assert other.reason == "the model was loaded with other options"
    with pytest.raises(ModelError, match=r"a conversation with m, and the model here"):
        read(path, owner(fingerprint="other"))


@given(data=st.data())
def test_a_damaged_file_is_never_half_believed(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
):
    path = tmp_path_factory.mktemp("saved") / "talk"
    save(path, spoken().state(), owner(), CELLS)
    whole = path.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        path.write_bytes(whole[:at])
    else:
        flipped = whole[at] ^ data.draw(st.integers(1, 255))
        path.write_bytes(whole[:at] + bytes([flipped]) + whole[at + 1 :])
    try:
        found = read(path, owner())
    except (ConfigError, ModelError):
        return
    # What is not looked at by anybody, such as the date of an entry.
    assert found.messages == spoken().messages
    assert found.cells is None or found.cells.data == CELLS.data


def rewritten(path: Path, change: dict[str, Any], **zipped: Any) -> None:
    """The file with another text, and with the checksum that belongs to it."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    text = {**json.loads(entries["conversation.json"]), **change}
    data = entries["conversation.json"] = json.dumps(text).encode()
    with zipfile.ZipFile(path, "w", **zipped) as archive:
        for name, entry in entries.items():
            archive.writestr(name, entry)
        archive.comment = hashlib.sha256(data).hexdigest().encode()


def says(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "assistant", "content": "x", **fields}]}


@pytest.mark.parametrize(
    "change",
    [
        {"format": 99},
        {"messages": 3},
        {"messages": [{"role": "user"}]},
        {"messages": [3]},
        says(content=3),
        says(role="tool\x1b[2J"),
        says(shortened=[]),
        *(says(ids=[i]) for i in ("a", 1.5, 1e400, True, -1, 272, 2**31, 2**70)),
        says(ids="12"),
        {"settings": 1},
        {"settings": {"model": 3}},
        {"settings": {"model": "x" * 10_000}},
        {"cells": {}},
        {"cells": {"tokens": [1, 2, 2**40], "row": None}},
        {"cells": {"tokens": [1, 2, 3], "row": 2**70}},
        {"sha256": {}},
    ],
)
def test_nonsense_is_refused(tmp_path: Path, change: dict[str, Any]):
    path = tmp_path / "talk"
    save(path, spoken().state(), owner(), CELLS)
    rewritten(path, change)
    with pytest.raises(ConfigError, match=str(path)):
        read(path, owner())


def test_a_text_that_was_changed_is_refused(tmp_path: Path):
    """Also where the archive's own checksums were brought up to date."""
    path = tmp_path / "talk"
    save(path, spoken().state(), owner(), None)
    rewritten(path, {})
    read(path, owner())
    rewritten(path, says(content="other words"))
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = b"0" * 64
    with pytest.raises(ConfigError, match="does not match its checksum"):
        read(path, owner())


def test_nothing_unpacks_to_more_than_the_file_is(tmp_path: Path):
    path = tmp_path / "talk"
    save(path, [], owner(), CELLS._replace(data=bytes(1 << 20)))
    rewritten(path, {}, compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1 << 14
    with pytest.raises(ConfigError, match="would unpack to"):
        read(path, owner())


def test_only_saved_conversations_are_replaced(tmp_path: Path):
    notes = tmp_path / "notes.txt"
    archive = tmp_path / "photos.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a.txt", "mine")
    notes.write_text("mine")
    for path in (notes, archive):
        before = path.read_bytes()
        with pytest.raises(ConfigError, match="so it is not replaced"):
            save(path, spoken().state(), owner(), None)
        assert path.read_bytes() == before
    (tmp_path / "empty").touch()
    for name in ("empty", "empty", "new"):  # the second time it is edgecs's own
        save(tmp_path / name, spoken().state(), owner(), None)
        assert read(tmp_path / name, owner()).messages == spoken().messages
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600


def test_what_is_not_a_file_is_not_waited_for(tmp_path: Path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(ConfigError, match="a named pipe"):
        read(pipe, owner())
    with pytest.raises(ConfigError, match="a named pipe"):
        save(pipe, [], owner(), None)


def test_without_an_owner_the_text_is_read_and_no_ids(tmp_path: Path):
    path = tmp_path / "talk"
    save(path, spoken().state(), owner(), CELLS, {"model": "x"})
    found = read(path, None)
    assert [m.content for m in found.messages] == [m.content for m in spoken().messages]
    assert all(m.ids is None for m in found.messages)
    assert (found.settings, found.cells) == ({"model": "x"}, None)


def test_a_file_that_is_not_there_or_no_place_to_write(tmp_path: Path):
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read(tmp_path / "none", owner())
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ConfigError, match="cannot be written"):
        save(file / "talk", [], owner(), None)
    assert restored([]) == []


# With a real engine.


def tiny_chat(loaded: Loaded, session: Session) -> Chat:
    vocabulary = loaded.model.vocabulary
    return Chat(session, Conversation(ChatTemplate(vocabulary), vocabulary))


def test_going_on_from_a_file_is_going_on(tiny_gguf: Path, tmp_path: Path):
    """The same tokens as never having stopped, and only the new ones are computed."""
    options, me = LoadOptions(n_ctx=512), owner()
    turns = ["hello there", "and then?", "why"]
    with load(tiny_gguf, options) as loaded, loaded.session() as session:
        one = tiny_chat(loaded, session)
        never_stopped = [said(one, text) for text in turns]
        again = said_again(one)
    with load(tiny_gguf, options) as loaded, loaded.session() as session:
        one = tiny_chat(loaded, session)
        first = [said(one, text) for text in turns[:2]]
        save(tmp_path / "talk", one.conversation.state(), me, loaded.target.snapshot())
    with load(tiny_gguf, options) as loaded, loaded.session() as session:
        found = read(tmp_path / "talk", me)
        assert found.cells is not None
        assert loaded.target.restore(found.cells)
        one = tiny_chat(loaded, session)
        one.conversation.messages = found.messages
        assert said_again(one) == first[1]
        assert session.stats.cached_tokens == session.stats.prompt_tokens
        assert [*first, said(one, turns[2])] == never_stopped
        assert session.stats.cached_tokens > session.stats.prompt_tokens // 2
        assert said_again(one) == again


def test_cells_that_an_engine_does_not_take_leave_it_empty(tiny: Loaded):
    with tiny.session() as session:
        one = tiny_chat(tiny, session)
        answer = said(one, "hello")
        cells = tiny.target.snapshot()
        assert cells is not None
        bad = [
            cells._replace(data=cells.data[: len(cells.data) // 2]),
            cells._replace(data=b""),
            cells._replace(tokens=cells.tokens[:-1]),
            cells._replace(tokens=cells.tokens * 1000),
        ]
        for one_bad in bad:
            assert not tiny.target.restore(one_bad)
            assert tiny.target.snapshot() is None
        one.undo()
        assert said(one, "hello") == answer
        assert tiny.target.restore(cells)
