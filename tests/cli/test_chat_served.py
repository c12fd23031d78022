"""A chat through a running server: the same text and commands as with a model here."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import platformdirs
import pytest

from edgecs.chat.conversation import Message
from edgecs.engines.load_options import LoadOptions
from edgecs.errors import ConfigError, EdgecsError, ModelError
from edgecs.server.app import Serving
from edgecs_cli.chat import showing
from edgecs_cli.chat.commands import run
from edgecs_cli.chat.deck import Deck, Leave
from edgecs_cli.chat.local import LocalTalk, open_here
from edgecs_cli.chat.showing import deck_of
from edgecs_cli.chat.talk import Start, Talk
from edgecs_cli.client.chat_served import ServedTalk, open_served
from edgecs_cli.client.connection import ServerLost
from edgecs_cli.options.recipe import Call, taken
from edgecs_cli.options.shared import Interrupt
from tests.cli.no_reader import NoReader
from tests.commands import Edgecs, one_line
from tests.conftest import Outcome, before_calls
from tests.server.servers import WAIT, published_server

OPTIONS = LoadOptions(n_ctx=512, threads=1, sequences=2)
FIXED = ("-t", 1, "-c", 512, "--no-history")
GREEDY = ("--temp", 0)
SAMPLED = ("--temp", 0.8, "-s", 5)
TALK = ("hello hello", "and again: hello", "abc abc abc")


@pytest.fixture(scope="module")
def server(
    tiny_gguf: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Serving]:
    root = tmp_path_factory.mktemp("served")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(platformdirs, "user_state_dir", lambda name: str(root / name))
        patch.setenv("XDG_STATE_HOME", str(root))
        with published_server(tiny_gguf, root, OPTIONS) as state:
            yield state


@pytest.fixture
def chat(
    edgecs: Edgecs, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Outcome]:
    """A chat with these lines on standard input."""

    def call(lines: tuple[str, ...], *options: object) -> Outcome:
        stdin = io.TextIOWrapper(io.BytesIO("\n".join(lines).encode() + b"\n"))
        monkeypatch.setattr(sys, "stdin", stdin)
        return edgecs("chat", "-m", tiny_gguf, *FIXED, *options)

    return call


def url_of(server: Serving) -> str:
    assert server.access.local is not None
    return server.access.local.url


@pytest.mark.parametrize(
    "options",
    [
        (*GREEDY, "-n", 24),
        (*SAMPLED, "-n", 24),
        (*SAMPLED, "-n", 24, "-sys", "Be brief."),
        (*SAMPLED, "--stop", "e"),
        (*SAMPLED, "-n", 0),
        (*SAMPLED, "--no-spec", "-n", 24),
        (*SAMPLED, "-n", 200, "--overflow", "shift"),
        (*SAMPLED, "-n", 400, "--overflow", "truncate-middle"),
        (*SAMPLED, "-n", 24, "-j", '{"enum": ["one", "two"]}'),
    ],
)
def test_a_conversation_is_the_same_through_a_server(
    server: Serving, chat: Callable[..., Outcome], options: tuple[object, ...]
):
    theirs, ours = chat(TALK, *options), chat(TALK, *options, "--server", "off")
    assert f"served by {url_of(server)} · 512 context · speculation" in theirs.err
    assert "served by" not in ours.err
    assert (theirs.code, theirs.out) == (ours.code, ours.out)
    counts = [
        [line.split(" ·")[0] for line in done.err.splitlines() if "token" in line]
        for done in (theirs, ours)
    ]
    assert counts[0] == counts[1]


def test_a_context_that_is_full_is_told_as_here(
    server: Serving, chat: Callable[..., Outcome]
):
    long = ("hello " * 200,)
    theirs, ours = chat(long, *GREEDY), chat(long, *GREEDY, "--server", "off")
    assert (theirs.code, theirs.out) == (ours.code, ours.out) == (2, "")
    assert theirs.err.splitlines()[-1] == ours.err.splitlines()[-1]
    full = ("hello " * 60,)
    endless = (*SAMPLED, "-l", "269-100")
    theirs, ours = chat(full, *endless), chat(full, *endless, "--server", "off")
    assert theirs.out == ours.out
    assert theirs.err.splitlines()[-1] == ours.err.splitlines()[-1]
    assert "the context is full" in theirs.err


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("-t", 2), "its threads is another one"),
        (("-c", 256), "its context has 512 tokens"),
        (("--kernels", "llama"), "its kernels is another one"),
        (("--draft-max", 3), "no server is used, as --draft-max is given"),
        (("--draft", "none"), "no server is used, as --draft is given"),
        (("--prompt-cache", "x"), "no server is used, as --prompt-cache is given"),
    ],
)
def test_what_a_server_would_do_differently_is_loaded_and_said(
    server: Serving,
    chat: Callable[..., Outcome],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[object, ...],
    why: str,
):
    monkeypatch.chdir(tmp_path)
    done = chat(("hello",), *GREEDY, "-n", 3, *options)
    assert done.code == 0, done.err
    (line,) = [line for line in done.err.splitlines() if "server" in line]
    assert why in line
    quiet = chat(("hello",), *GREEDY, "-n", 3, "-q", *options)
    assert quiet.err == ""
    what = why.removeprefix("no server is used, as ").replace(" is given", " needs")
    refused = chat(("hello",), *options, "--server", url_of(server))
    one_line(refused, 2, what)


def test_a_url_that_is_given_must_answer(server: Serving, chat: Callable[..., Outcome]):
    one_line(chat((), "--server", "http://127.0.0.1:9"), 1, "cannot be reached")
    one_line(chat((), "--server", "somewhere"), 2, "is not a server's URL")
    done = chat(("hello",), "--server", url_of(server), *GREEDY, "-n", 3)
    assert done.code == 0
    assert f"served by {url_of(server)}" in done.err


def test_a_chat_through_a_server_loads_no_engine(server: Serving, tiny_gguf: Path):
    command = ["chat", "-m", str(tiny_gguf), *map(str, FIXED), "-n", "2"]
    script = (
        "import sys; from edgecs_cli.running import run; "
        f"code = run({command}); print(); print(*sys.modules); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, input="hello\n"
    )
    assert "served by" in done.stderr
    loaded = {*done.stdout.splitlines()[-1].split()}
    assert not loaded & {
        *("llama_cpp", "onnxruntime", "pydantic", "httpx", "rich", "llguidance"),
        *("huggingface_hub", "jinja2", "edgecs.runtime", "edgecs.calibrate"),
    }


# Commands, on both kinds of conversation.


@contextmanager
def talking(tiny_gguf: Path, *options: object) -> Iterator[tuple[Talk[Any], Interrupt]]:
    """A conversation: a server's unless `--server off` is among the options."""
    command = import_module("edgecs_cli.commands.chat").chat
    given = ["-m", tiny_gguf, *FIXED, "-s", 1, "-n", 12, "-q", *options]
    with command.make_context("chat", [*map(str, given)]) as context:
        values, interrupt = context.params, Interrupt()
        call, start = taken(Call, values), taken(Start, values)
        opening = open_here if values["server"] == "off" else open_served
        with opening(values, start, call, interrupt) as talk:
            yield talk, interrupt


def quiet() -> Call:
    return Call(quiet=False, verbose=False, offline=True)


@pytest.fixture
def talk(server: Serving, tiny_gguf: Path, cache: Path) -> Iterator[ServedTalk]:
    with talking(tiny_gguf) as (found, _):
        assert isinstance(found, ServedTalk)
        yield found


@pytest.fixture
def here(server: Serving, tiny_gguf: Path, cache: Path) -> Iterator[LocalTalk]:
    with talking(tiny_gguf, "--server", "off") as (found, _):
        assert isinstance(found, LocalTalk)
        yield found


@pytest.fixture
def deck(talk: ServedTalk) -> Deck:
    return Deck(talk, lambda tokens: [*tokens()])


def test_both_kinds_keep_the_same_messages(
    talk: ServedTalk, here: LocalTalk, monkeypatch: pytest.MonkeyPatch
):
    """Ids, seeds of regenerated answers, editing, system messages, settings."""
    decks = [Deck(one, lambda tokens: [*tokens()]) for one in (talk, here)]
    monkeypatch.setattr("click.edit", lambda text, extension: "edited")

    def both(line: str) -> None:
        for one in decks:
            run(one, line)
        kept = [list(one.talk.chat.messages) for one in decks]
        assert kept[0] == kept[1]
        assert decks[0].talk.tokens() == decks[1].talk.tokens()

    for one in (talk, here):
        assert [*one.ask("hello")]
    assert talk.chat.messages[1].ids
    for line in (
        "/system Be brief.",
        "/regen",
        "/regen",
        "/edit",
        "/set max_tokens 30",
        "/set temp 1.5",
        "/set top_k 7",
        "/regen",
        "/spec off",
        "/regen",
        "/undo",
        "/clear",
    ):
        both(line)
    assert not talk.stats.tested


def test_tokens_have_the_sources_of_the_server(talk: ServedTalk):
    tokens = [*talk.ask("abc abc abc abc abc")]
    drafted = [token for token in tokens if token.source != "target"]
    assert len(drafted) == talk.stats.accepted
    assert {token.source for token in drafted} <= {*talk.chain[1:]}
    origins = talk.origins()
    assert origins.off_reason is None
    assert talk.stats.tokens == len(tokens)
    assert talk.stats.prompt_tokens
    assert talk.chat.finish_reason == "length"


def test_statistics_come_from_the_server(deck: Deck, capfd: pytest.CaptureFixture[str]):
    run(deck, "/stats")
    assert "no answer yet" in capfd.readouterr().err
    [*deck.talk.ask("abc abc abc abc")]
    run(deck, "/stats")
    told = capfd.readouterr().err
    for part in ("12 tokens · ", "limit reached", "prompt: ", "rounds: ", "source"):
        assert part in told
    run(deck, "/explain on")
    run(deck, "/show")
    told = capfd.readouterr().err
    assert "explain: on" in told
    assert "served by" in told
    assert "of 512 tokens of context" in told
    with pytest.raises(ConfigError, match="/spec auto or /spec off"):
        run(deck, "/spec on")
    run(deck, "/spec off")
    [*deck.talk.again()]
    assert not deck.talk.stats.tested
    assert deck.talk.origins().off_reason == "not asked for"


def test_saved_conversations_go_from_one_kind_to_the_other(
    talk: ServedTalk, here: LocalTalk, tmp_path: Path
):
    [*talk.ask("hello")]
    talk.save(tmp_path / "a.edgecs")
    assert here.load(tmp_path / "a.edgecs") == "it was saved without its cells"
    assert list(here.chat.messages) == list(talk.chat.messages)
    after = [token.id for token in here.ask("and?")]
    assert [token.id for token in talk.ask("and?")] == after
    here.save(tmp_path / "b.edgecs")
    talk.chat.conversation.messages = []
    talk.load(tmp_path / "b.edgecs")
    assert list(talk.chat.messages) == list(here.chat.messages)


def test_another_model_goes_on_with_the_text(talk: ServedTalk, here: LocalTalk):
    [*here.ask("hello")]
    here.set_spec("on")
    here.set_sampling("temperature", 0)
    talk.take_over(here)
    assert [m.content for m in talk.chat.messages] == [
        m.content for m in here.chat.messages
    ]
    assert talk.chat.messages[1] == Message("assistant", here.chat.messages[1].content)
    assert talk.sampling.is_greedy
    assert talk.spec == "auto"  # a server has no "on"
    assert [*talk.ask("and?")]


def test_models_are_found_on_the_server_or_here(deck: Deck, tiny_gguf: Path):
    with pytest.raises(Leave) as caught:
        run(deck, f"/model {tiny_gguf}")
    assert caught.value.model == str(tiny_gguf)
    with pytest.raises(ModelError, match="nonesuch"):
        run(deck, "/model nonesuch")


def is_idle(server: Serving) -> bool:
    assert server.pool is not None
    return not any(one.users for one in server.pool.residents())


def wait_for_idle(server: Serving) -> None:
    until = time.monotonic() + WAIT
    while not is_idle(server):
        assert time.monotonic() < until


def test_ctrl_c_keeps_the_text_and_frees_the_slot(
    server: Serving,
    tiny_gguf: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
):
    shown = list[str]()
    echo = showing.echo

    def stop_at_the_third(text: str = "", **more: bool) -> None:
        echo(text, **more)
        shown.append(text)
        if len(shown) == 3:
            signal.raise_signal(signal.SIGINT)

    options = ("-l", "269-100", "-n", 480)
    with talking(tiny_gguf, *options) as (talk, interrupt):
        ask = NoReader()
        deck = deck_of(talk, ask, interrupt, quiet())
        with monkeypatch.context() as patch:
            patch.setattr(showing, "echo", stop_at_the_third)
            deck.answer(lambda: talk.ask("hello"))
        assert ask.stopped
        assert talk.chat.finish_reason == "cancelled"
        _, answer = talk.chat.messages
        assert answer.ids
        assert 2 <= len(answer.ids) < 480
        assert " · stopped" in capfd.readouterr().err
        wait_for_idle(server)
        deck.answer(lambda: talk.ask("and?"))  # the next one is not stopped
        assert talk.chat.finish_reason in ("length", "context")


def test_ctrl_c_while_the_server_reads_ends_at_once(
    server: Serving, tiny_gguf: Path, cache: Path, capfd: pytest.CaptureFixture[str]
):
    """The server sends nothing until the first token."""
    told = threading.Event()

    def once(number: int) -> None:
        if number == 1:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            assert told.wait(WAIT)  # it ends although this call does not

    with talking(tiny_gguf) as (talk, interrupt), pytest.MonkeyPatch.context() as patch:
        deck = deck_of(talk, NoReader(), interrupt, quiet())
        before_calls(patch, once)
        deck.answer(lambda: talk.ask("hello"))
        told.set()
        assert talk.chat.finish_reason == "cancelled"
        assert not talk.chat.messages
        wait_for_idle(server)
    assert "stopped before the first token" in capfd.readouterr().err


def test_a_server_that_goes_away_costs_one_sentence_and_no_message(
    tiny_gguf: Path,
    tmp_path: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(platformdirs, "user_state_dir", lambda name: str(tmp_path))
    with ExitStack() as stack:
        with published_server(tiny_gguf, tmp_path, OPTIONS):
            talk, _ = stack.enter_context(talking(tiny_gguf, "-l", "269-100"))
            [*talk.ask("hello")]
            before = list(talk.chat.messages)
        with pytest.raises(ServerLost, match="no server of yours answers for tiny"):
            [*talk.ask("and?")]
        assert list(talk.chat.messages) == before
        with published_server(tiny_gguf, tmp_path, OPTIONS):
            assert [*talk.ask("and?")]
            assert len(talk.chat.messages) == 4
        other = LoadOptions(n_ctx=256, threads=1)
        with (
            published_server(tiny_gguf, tmp_path, other),
            pytest.raises(EdgecsError, match="no server of yours"),
        ):
            [*talk.ask("and?")]


@pytest.mark.model
def test_the_default_model_chats_the_same(
    model_path: Path,
    edgecs: Edgecs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(platformdirs, "user_state_dir", lambda name: str(tmp_path))
    lines = "What is a llama?\nAnd an alpaca?\n"
    options = LoadOptions(n_ctx=1024, sequences=4)
    base = ("chat", "-m", model_path, "-c", 1024, "-n", 48, "--no-history")

    def said(*more: object) -> Outcome:
        stdin = io.TextIOWrapper(io.BytesIO(lines.encode()))
        monkeypatch.setattr(sys, "stdin", stdin)
        return edgecs(*base, *more)

    with published_server(model_path, tmp_path, options):
        for more in (GREEDY, SAMPLED):
            theirs, ours = said(*more), said(*more, "--server", "off")
            assert "served by" in theirs.err
            assert theirs.out == ours.out
