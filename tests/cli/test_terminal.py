"""A chat on a real terminal: what is typed when, what is shown, and how it ends."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from pathlib import Path

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from edgecs.chat.conversation import Message
from edgecs_cli.chat import autosave, input
from edgecs_cli.chat.autosave import last_chat
from tests.terminal import Terminal

pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="there are no pseudo-terminals here"
)


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where chats and the history of a user are kept, empty."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "edgecs"


def test_a_chat_on_a_terminal(tiny_gguf: Path, state: Path):
    options = ("-m", tiny_gguf, "-c", 512, "-s", 1, "-n", 8)
    terminal = Terminal(*options)
    terminal.wait(r"tiny · CPU, [^\n]* · 512 context · speculation on\s+>")
    terminal.type("hello\r")
    terminal.wait(r"8 tokens · .*limit reached")
    terminal.type('"""two\r')
    terminal.type('lines"""\r')
    terminal.wait(r"8 tokens · .*limit reached")
    terminal.type("/undo\r")
    terminal.wait(r"removed: two lines")
    terminal.type("/nonsense\r")
    terminal.wait(r"there is no command /nonsense")
    terminal.type("/model /nowhere.gguf\r")
    terminal.wait(r"there is no file /nowhere.gguf")
    terminal.type("/set temp 0\r")
    terminal.wait(r"temperature = 0")
    terminal.type("/stats off\r")
    terminal.type(f"/model {tiny_gguf}\r")
    terminal.wait(r"speculation on\s+>")
    terminal.type("/show\r")
    terminal.wait(r"sampling: greedy[\s\S]*stats: off[^\n]*\n[\s\S]*2 messages")
    # What is typed is dropped first, however much of it there is.
    for keys in ("a", "b", '"""c\rd'):
        terminal.type(keys)
        terminal.wait(keys[-1])
        terminal.type("\x03")
        terminal.wait(r"\n>")
    terminal.type("\x03")
    terminal.wait("Ctrl-C again")
    terminal.type("\x03")
    assert terminal.end() == 0
    assert "+hello" in (state / "history").read_text()


def endless(model: Path) -> tuple[object, ...]:
    """Without its end token a model talks until 60,000 tokens are there."""
    return ("-m", model, "-c", 60000, "--temp", 0, "--logit-bias", "269-100")


def test_ctrl_c_stops_an_answer_and_keeps_it(tiny_gguf: Path, state: Path):
    terminal = Terminal(*endless(tiny_gguf), "--no-history", term="dumb")
    terminal.wait(r"speculation on")
    terminal.type("hello\r")
    time.sleep(0.3)
    terminal.process.send_signal(signal.SIGINT)
    terminal.wait(r" · stopped")
    terminal.type("/show\r")
    terminal.wait(r"2 messages")
    terminal.type("\x04")
    assert terminal.end() == 0
    assert not state.exists()


def test_what_is_typed_during_an_answer_waits_in_the_prompt(tiny_gguf: Path):
    terminal = Terminal(*endless(tiny_gguf), "--no-history")
    terminal.wait(r"speculation on\s+>")
    terminal.type("hello\r")
    terminal.wait("hello[\\s\\S]{200}")
    terminal.type("next quest\x7f\x7fstion\x1b[A\r")
    time.sleep(0.3)
    terminal.process.send_signal(signal.SIGTERM)  # an end that loses nothing typed
    assert terminal.end() == 143
    assert "next" not in terminal.text
    terminal = Terminal("-m", tiny_gguf, "-c", 512, "-s", 1, "-n", 200, "--no-history")
    terminal.wait(r"speculation on\s+>")
    terminal.type("hello\rnext quest\x7f\x7fstion\x1b[A\r")
    assert "next" not in terminal.wait(r"limit reached|tok/s")
    terminal.wait(r"> next question")
    assert "tok/s" not in terminal.text  # it was not sent
    terminal.type("\r")
    terminal.wait(r"tok/s")
    terminal.type("\x04")
    assert terminal.end() == 0


def test_commands_are_completed(tiny_gguf: Path):
    terminal = Terminal("-m", tiny_gguf, "-c", 512, "--no-history")
    terminal.wait(r"speculation on\s+>")
    terminal.type("/he")
    terminal.wait(r"/help")  # offered below the line
    terminal.type("\t")
    terminal.wait(r"lp")  # and taken
    terminal.type("\r")
    terminal.wait(r"Ctrl-D leaves")
    terminal.type("/set top_n")
    terminal.wait(r"top_n_sigma")
    terminal.type("\t")
    terminal.wait(r"_sigma")
    terminal.type(" 2\r")
    terminal.wait(r"top_n_sigma = 2")
    terminal.type("\x04")
    assert terminal.end() == 0


def test_help_fits_a_small_terminal(tiny_gguf: Path):
    terminal = Terminal("-m", tiny_gguf, "-c", 512, "--no-history", term="dumb")
    terminal.wait(r"speculation on\s+>")
    terminal.type("/help\r")
    lines = terminal.wait(r"Ctrl-D leaves.\r\n").split("\r\n")[1:-1]
    assert "/exit" in lines[1]
    assert len(lines) < 24
    assert max(map(len, lines)) <= 80
    terminal.type("\x04")
    assert terminal.end() == 0


@pytest.mark.parametrize("how", ["SIGTERM", "SIGHUP", "window", "exit"])
def test_no_end_of_a_chat_loses_it(tiny_gguf: Path, state: Path, how: str):
    (state / "chats").mkdir(parents=True)
    (state / "chats" / ".1-2.edgecs.99999999-00000000.part").touch()  # of a killed chat
    terminal = Terminal(*endless(tiny_gguf))
    terminal.wait(r"speculation on\s+>")
    terminal.type("hello\r")
    terminal.wait("hello[\\s\\S]{200}")
    if how == "window":
        terminal.hang_up()
    elif how == "exit":
        terminal.process.send_signal(signal.SIGINT)
        terminal.wait("stopped")
        terminal.type("/exit\r")
    else:
        terminal.process.send_signal(getattr(signal, how))
    assert terminal.end() in (0, 128 + signal.SIGTERM, 128 + signal.SIGHUP, 1)
    (file,) = (state / "chats").glob("*")  # no part of a file either
    assert file.stat().st_mode & 0o777 == 0o600
    assert last_chat() == (file, str(tiny_gguf))
    again = Terminal("--resume", "-c", 60000, "-n", 4)
    again.wait(r"2 messages from the last chat")
    again.type("/show\r")
    again.wait(r"2 messages; \d+ of 60000")
    again.type("more\r")
    again.wait(r"4 tokens")
    again.type("\x04")
    assert again.end() == 0


def test_no_command_ends_a_chat(tiny_gguf: Path, tmp_path: Path, monkeypatch):
    editor = tmp_path / "editor"
    editor.write_text("#!/bin/sh\nprintf '\\377\\376' >\"$1\"\n")
    editor.chmod(0o755)
    monkeypatch.setenv("EDITOR", str(editor))
    terminal = Terminal("-m", tiny_gguf, "-c", 512, "-n", 4, "--no-history")
    terminal.wait(r"speculation on\s+>")
    terminal.type("hello\r")
    terminal.wait("4 tokens")
    for line, says in (
        ("/save ~nosuchuser/x", "is not a path"),
        ("/load ~nosuchuser/x", "is not a path"),
        ("/read ~nosuchuser/x", "is not a path"),
        ("/edit", "not UTF-8"),
        ("/glob [", "no file matches"),
        ("/set seed 99999999999999999999999", "seed must be between"),
        ("/save /dev/full", "a device, not a regular file"),
        ("/save /proc/x", "cannot be written"),
    ):
        terminal.type(f"{line}\r")
        terminal.wait(says)
    terminal.type("/show\r")
    terminal.wait("2 messages")
    terminal.type("\x04")
    assert terminal.end() == 0


def test_ctrl_c_while_the_prompt_appears(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    begin, interrupts = asyncio.events.new_event_loop, iter([True])

    def interrupted() -> asyncio.AbstractEventLoop:
        if next(interrupts, False):
            signal.raise_signal(signal.SIGINT)
        return begin()

    monkeypatch.setattr(asyncio.events, "new_event_loop", interrupted)
    monkeypatch.setattr(input, "_Modes", lambda: None)
    with (
        create_pipe_input() as keys,
        create_app_session(input=keys, output=DummyOutput()),
    ):
        reader = input.Typed(history=False)
        keys.send_text("hello\r")
        assert reader() == "hello"
    assert "press Ctrl-C again or Ctrl-D to leave" in capsys.readouterr().err


def test_a_second_tab_keeps_the_only_completion(tiny_gguf: Path, state: Path):
    terminal = Terminal("-m", tiny_gguf, "-c", 64)
    terminal.wait(r"speculation on\s+>")
    terminal.type("/reg")
    terminal.wait("/reg")
    terminal.type("\t")
    terminal.wait("/regen")
    time.sleep(0.3)  # the menu is gone
    terminal.type("\t")
    time.sleep(0.3)
    terminal.type("\r")
    terminal.wait("there is no message yet")
    terminal.type("\x04")
    assert terminal.end() == 0


def test_ctrl_c_ends_a_command_and_not_the_chat(
    tiny_gguf: Path, state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    editor = tmp_path / "editor"
    editor.write_text("#!/bin/sh\necho it is open\nexec sleep 60\n")
    editor.chmod(0o755)
    monkeypatch.setenv("EDITOR", str(editor))
    monkeypatch.delenv("VISUAL", raising=False)
    terminal = Terminal("-m", tiny_gguf, "-c", 256, "-n", 4, "-s", 1)
    terminal.wait(r"speculation on\s+>")
    terminal.type("hello\r")
    terminal.wait(r"4 tokens .*\s+>")
    terminal.type("/edit\r")
    terminal.wait("it is open")
    terminal.type("\x03")
    terminal.wait(r"stopped\s+>")
    terminal.type("/show\r")
    terminal.wait("2 messages")
    terminal.type("\x04")
    assert terminal.end() == 0
    assert last_chat()[0].is_file()


def test_a_signal_while_a_chat_is_written_loses_nothing(
    monkeypatch: pytest.MonkeyPatch, state: Path
):
    calls = []

    def save(path: Path, *rest: object) -> None:
        calls.append(path)
        if len(calls) == 1:
            raise SystemExit(143)

    class Talking:
        class chat:
            messages = (Message("user", "a"), Message("assistant", "b"))

            class conversation:
                state = staticmethod(list)

        owner = staticmethod(lambda: None)

    monkeypatch.setattr(autosave, "save", save)
    keep = autosave.Autosave(wanted=True)
    with pytest.raises(SystemExit), keep.at_end(Talking, "m"):  # type: ignore[arg-type]
        keep.write(Talking, "m")  # type: ignore[arg-type]
    assert len(calls) == 2
