"""What a chat in the terminal shows, and what lines with a slash do."""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path

import click
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecs.chat.conversation import Conversation
from edgecs.errors import ConfigError, ModelError
from edgecs.session.answer import Token
from edgecs.text.chat_template import ChatTemplate
from edgecs.text.thoughts import Thoughts
from edgecs.toolcalls.form import AnswerForm
from edgecs_cli.chat.commands import COMMANDS, run
from edgecs_cli.chat.deck import Deck, Leave
from edgecs_cli.chat.local import LocalTalk
from edgecs_cli.chat.render import Markdown, WordWrap, shown
from edgecs_cli.chat.talk import Start
from edgecs_cli.console import Painted, harmless
from edgecs_cli.loading.opening import opened
from edgecs_cli.options.recipe import Call, read_recipe, taken
from edgecs_cli.options.shared import Interrupt
from edgecs_cli.origins import COLOURS
from tests.conftest import Outcome

Edgecs = Callable[..., Outcome]
START = Start(None, "stop", (), max_tokens=5, offline=False)
markdown = st.text(st.sampled_from("a*`#\n -<日🙂\x1b"), max_size=40)


def cut(text: str, places: list[int]) -> list[str]:
    ends = sorted({min(place, len(text)) for place in places} | {0, len(text)})
    return [text[a:b] for a, b in itertools.pairwise(ends)]


def looks(styled: str) -> list[tuple[str, str]]:
    """Every character with the codes that are on for it."""
    found, on = [], ""
    for code, letter in re.findall(r"(\x1b\[[0-9;]*m)|(.)", styled, re.S):
        if code:
            on = "" if code == "\x1b[0m" else on + code
        else:
            found.append((letter, on))
    return found


@settings(max_examples=1000)
@given(markdown, st.lists(st.integers(0, 40), max_size=6))
def test_markdown_keeps_every_character_however_it_is_cut(text: str, places: list[int]):
    def painted(chunks: list[str]) -> str:
        paint = Markdown()
        return "".join(map(paint.feed, chunks)) + paint.flush()

    text = harmless(text)
    whole = looks(painted([text]))
    assert "".join(letter for letter, _ in whole) == text
    assert looks(painted(list(text))) == looks(painted(cut(text, places)))


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("a **b** c", "a  c"),
        ("# Title\nx", "# \nx"),
        ("use `a*b` now", "use  now"),
        ("```py\n# x **y**\n```\nend", "\n\n\nend"),
        ("2 * 3 * 4", "2 * 3 * 4"),
    ],
)
def test_what_has_looks_and_what_has_none(text: str, plain: str):
    paint = Markdown()
    styled = looks(paint.feed(text) + paint.flush())
    assert "".join(letter for letter, on in styled if not on) == plain


@given(markdown, markdown, st.lists(st.integers(0, 60), max_size=6))
def test_thoughts_are_folded_however_they_are_cut(
    thought: str, answer: str, places: list[int]
):
    def split(text: str, thoughts: Thoughts) -> tuple[str, str]:
        parts = [*map(thoughts.feed, cut(text, places)), thoughts.flush()]
        return "".join(p.thought for p in parts), "".join(p.answer for p in parts)

    def folded(text: str) -> str:
        return split(text, Thoughts())[1]

    whole = f"\n<think>{thought}</think>\n\n{answer}"
    assert split(whole, Thoughts()) == (thought, answer.lstrip("\n"))
    assert folded(f"{answer}x") == f"{answer}x"
    assert split(f"<think>{thought}", Thoughts()) == (thought, "")
    begun = split(f"{thought}</think>{answer}", Thoughts(open=True))
    assert begun == (thought, answer.lstrip("\n"))


def test_a_template_may_open_the_thought_itself(deck: Deck):
    assert not deck.talk.thinks_at_once
    template = deck.talk.session.tokenizer.chat_template
    talk = deck.talk
    talk.session.tokenizer.chat_template = f"{template}<think>\n"
    talk.chat.conversation = Conversation(
        ChatTemplate(talk.session.tokenizer), talk.session.tokenizer
    )
    del talk.thinks_at_once
    assert talk.thinks_at_once
    assert not talk.chat.messages


def test_thinking_is_told_on_the_side(capfd: pytest.CaptureFixture[str]):
    texts = ["<think>", "long ", "thought", "</think>", "yes"]
    tokens = [Token(i, text, "target") for i, text in enumerate(texts)]
    wrap, form = WordWrap(lambda: None), AnswerForm.of("")
    assert "".join(shown(tokens, wrap, looks=False, folds=True, form=form)) == "yes"
    assert "thinking ... 12 characters, folded" in capfd.readouterr().err
    unfolded = shown(tokens, wrap, looks=False, folds=False, form=form)
    assert "".join(unfolded) == "".join(texts)


# Commands, with a model behind them.


@pytest.fixture
def deck(tiny_gguf: Path, edgecs: Edgecs) -> Iterator[Deck]:
    """A chat with the tiny model; its answers are heard by nobody."""
    chat = import_module("edgecs_cli.commands.chat").chat
    options = ["-m", str(tiny_gguf), "-c", "512", "-s", "1", "-n", "12", "-q"]
    with chat.make_context("chat", options) as context, ExitStack() as closing:
        recipe, call = read_recipe(context.params), taken(Call, context.params)
        runtime = closing.enter_context(opened(recipe, call, Interrupt()))
        talk = LocalTalk(runtime, taken(Start, context.params), closing)
        yield Deck(talk, lambda tokens: [*tokens()])


def ask(deck: Deck, text: str) -> list[int]:
    return [token.id for token in deck.talk.ask(text)]


def last(deck: Deck) -> tuple[int, ...]:
    ids = deck.talk.chat.messages[-1].ids
    assert ids
    return ids


def test_every_command_has_a_line_of_help(deck: Deck, capfd):
    run(deck, "/help")
    told = capfd.readouterr().err
    for command in COMMANDS:
        assert command.help
        assert all(name in told for name in command.names)


def test_an_answer_given_again_is_another_one_and_the_first_comes_back(deck: Deck):
    first = tuple(ask(deck, "hello"))
    run(deck, "/regen")
    second = last(deck)
    run(deck, "/regen")
    assert len({first, second, last(deck)}) == 3
    run(deck, "/undo")
    assert tuple(ask(deck, "hello")) == first
    run(deck, "/set temp 0")
    run(deck, "/regen")
    greedy = last(deck)
    run(deck, "/regen")
    assert last(deck) == greedy
    assert len(deck.talk.chat.messages) == 2


def test_speculation_changes_nothing_whatever_it_is_set_to(deck: Deck):
    answers = []
    for spec in ("auto", "off", "on"):
        run(deck, f"/spec {spec}")
        run(deck, "/clear")
        answers.append([ask(deck, "abc abc abc"), ask(deck, "abc abc")])
    assert answers[0] == answers[1] == answers[2]
    assert deck.talk.session.stats.proposed


def test_a_conversation_goes_on_from_a_file(deck: Deck, tmp_path: Path, capfd):
    file = tmp_path / "my talk.edgecs"
    run(deck, "/system Be brief.")
    ask(deck, "hello")
    run(deck, f'/save "{file}"')
    before = list(deck.talk.chat.messages)
    after = ask(deck, "and?")
    run(deck, "/clear")
    ask(deck, "something else")
    run(deck, f"/load {file}")
    assert list(deck.talk.chat.messages) == before
    assert "recomputed" not in capfd.readouterr().err
    assert ask(deck, "and?") == after
    assert deck.talk.session.stats.cached_tokens


def test_files_go_in_front_of_the_next_message(deck: Deck, tmp_path: Path):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(f"text of {name}\n")
    run(deck, f"/read {tmp_path / 'a.txt'}")
    run(deck, f"/glob {tmp_path}/*.txt")
    assert [text.split(":")[0] for text in deck.attached] == ["a.txt", "a.txt", "b.txt"]
    assert "text of b.txt" in deck.attached[2]
    run(deck, "/clear")
    assert not deck.attached


def test_the_last_message_is_edited(deck: Deck, monkeypatch: pytest.MonkeyPatch):
    ask(deck, "helo")
    shown = []

    def edit(text: str, extension: str) -> str:
        shown.append(text)
        return "hello\n"

    monkeypatch.setattr(click, "edit", edit)
    run(deck, "/edit")
    assert shown == ["helo"]
    assert [m.content for m in deck.talk.chat.messages if m.role == "user"] == ["hello"]
    monkeypatch.setattr(click, "edit", lambda *a, **k: None)
    run(deck, "/edit")
    assert len(deck.talk.chat.messages) == 2


def test_the_clipboard_gets_the_last_code_block(deck: Deck, capfd):
    ask(deck, "hello")
    deck.talk.chat.conversation.add_answer("say\n```py\nx = 1\n```\nend", [1])
    run(deck, "/copy")
    assert "eCA9IDEK" in capfd.readouterr().err  # "x = 1\n"


def test_settings_are_shown_and_changed(deck: Deck, capfd):
    run(deck, "/set top-k 3")
    run(deck, "/set parameter overflow shift")
    run(deck, "/set max_tokens -1")
    run(deck, "/set temp 0")
    run(deck, "/show")
    told = capfd.readouterr().err
    assert "sampling: greedy" in told
    assert "top_k 3" in told
    assert "overflow: shift" in told
    assert "max_tokens: none" in told
    assert deck.talk.chat.max_tokens is None
    run(deck, "/stats")
    assert "no answer yet" in capfd.readouterr().err
    ask(deck, "hello")
    run(deck, "/stats")
    run(deck, "/explain on")
    assert capfd.readouterr().err.count("source") == 2


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("/regn", "no command /regn: did you mean /regen?"),
        ("/xyzzy", "/help lists them all"),
        ("/regen", "there is no message yet"),
        ("/undo", "nothing to undo"),
        ("/set temprature 1", "did you mean temperature?"),
        ("/set top_k many", "top_k must be a whole number, got 'many'"),
        ("/set temp -1", "temperature must be 0"),
        ("/set overflow never", "overflow must be stop or shift or truncate-middle"),
        ("/spec maybe", "spec must be auto or on or off"),
        ("/stats maybe", "stats must be on or off"),
        ("/save", "no file was given"),
        ("/load /nowhere/x", "cannot be read: No such file"),
        ("/read /nowhere/x", "cannot be read: No such file"),
        ("/read /", "cannot be read: Is a directory"),
        ("/glob /nowhere/*", "no file matches"),
        ("/glob", "no pattern was given"),
        ("/copy", "no answer to copy"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_sentence(deck: Deck, line: str, says: str):
    with pytest.raises(ConfigError) as caught:
        run(deck, line)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not deck.talk.chat.messages


def test_leaving_and_changing_the_model(deck: Deck, tiny_gguf: Path):
    path = str(tiny_gguf)
    for line, model in (("/bye", None), ("/exit", None), (f"/model {path}", path)):
        with pytest.raises(Leave) as caught:
            run(deck, line)
        assert caught.value.model == model


def test_a_model_that_is_not_there_does_not_cost_the_one_that_is(deck: Deck):
    for name in ("nonesuch", "/nowhere.gguf"):
        with pytest.raises(ModelError, match=name):
            run(deck, f"/model {name}")


def test_another_model_goes_on_with_text_and_settings(deck: Deck):
    run(deck, "/system Be brief.")
    ask(deck, "hello")
    run(deck, "/set temp 0")
    run(deck, "/set overflow shift")
    run(deck, "/spec off")
    other = LocalTalk(deck.talk.runtime, START, ExitStack())
    deck.talk.session.close()
    other.take_over(deck.talk)
    texts = [(m.role, m.content) for m in deck.talk.chat.messages]
    assert [(m.role, m.content) for m in other.chat.messages] == texts
    assert all(m.ids is None for m in other.chat.messages)
    assert other.sampling.temperature == 0
    assert other.spec == "off"
    assert (other.chat.overflow, other.chat.max_tokens) == ("shift", 12)
    assert other.tokens() > len("Be brief.hello")


def test_the_system_message(deck: Deck, capfd):
    run(deck, "/system")
    run(deck, "/system Be brief.")
    run(deck, "/system none")
    told = capfd.readouterr().err.splitlines()
    assert told == ["system: none", "system: Be brief.", "system: none"]


def test_a_prompt_cache_changes_no_token(edgecs, tiny_gguf, tmp_path, monkeypatch):
    import io

    said = []
    cache = tmp_path / "rules.cache"
    for _ in range(2):
        stdin = io.TextIOWrapper(io.BytesIO(b"hi\n"))
        monkeypatch.setattr(sys, "stdin", stdin)
        options = ("-c", 512, "-s", 1, "-n", 20, "-sys", "rules " * 9)
        outcome = edgecs("chat", "-m", tiny_gguf, *options, "--prompt-cache", cache)
        assert outcome.code == 0, outcome.err
        said.append(outcome)
    assert said[0].out == said[1].out
    assert "system message to" in said[0].err
    assert "of the system message from" in said[1].err


def test_a_pattern_that_matches_without_end_is_refused(deck: Deck, tmp_path: Path):
    for i in range(101):
        (tmp_path / f"{i}.txt").write_text("x")
    with pytest.raises(ConfigError, match="more than 100 files"):
        run(deck, f"/glob {tmp_path}/*.txt")
    assert not deck.attached
    (tmp_path / "large").mkdir()
    for i in range(2):
        (tmp_path / "large" / f"{i}.md").write_text("x" * (3 << 20))
    with pytest.raises(ConfigError, match="6 MiB, more than 4"):
        run(deck, f"/glob {tmp_path}/large/*.md")
    assert not deck.attached


def test_what_is_a_command_is_no_setting(deck: Deck):
    with pytest.raises(ConfigError, match=r"stats is a command: /stats \[on\|off\]"):
        run(deck, "/set stats on")


def test_stats_keep_their_colours(deck: Deck, monkeypatch: pytest.MonkeyPatch):
    told: list[str] = []
    monkeypatch.setattr(
        "edgecs_cli.chat.setting_commands.has_colours", lambda stream: True
    )
    monkeypatch.setattr("edgecs_cli.chat.setting_commands.columns", lambda stream: 40)
    monkeypatch.setattr(
        "edgecs_cli.chat.setting_commands.echo", lambda line, err: told.append(line)
    )
    ask(deck, "a b a b a b")
    for line in ("/stats", "/explain on"):
        told.clear()
        run(deck, line)
        (row,) = [line for line in told if click.style("mag", fg=COLOURS[0]) in line]
        assert isinstance(row, Painted)
        plain = [line for line in told if not isinstance(line, Painted)]
        assert all(len(part) <= 40 for line in plain for part in line.split("\n"))
