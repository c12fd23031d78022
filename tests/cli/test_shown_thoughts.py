"""Thoughts on the terminal, of a model that is loaded here or that a server has."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import platformdirs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecs.engines.load_options import LoadOptions
from edgecs.session.answer import Token
from edgecs.toolcalls.form import AnswerForm
from edgecs_cli.chat.commands import run
from edgecs_cli.chat.local import open_here
from edgecs_cli.chat.render import WordWrap, shown
from edgecs_cli.chat.showing import deck_of
from edgecs_cli.chat.talk import Start
from edgecs_cli.client.chat_served import open_served
from edgecs_cli.options.recipe import Call, taken
from edgecs_cli.options.shared import Interrupt
from tests.cli.no_reader import NoReader
from tests.commands import Edgecs
from tests.conftest import Outcome, interrupt_at
from tests.server.servers import published_server
from tests.thinking_models import GEMMA, HARMONY, QWEN, write_thinker

THINKERS = {"gpt-oss": HARMONY, "Gemma 4": GEMMA, "Qwen": QWEN}
THOUGHT, ANSWER = "They ask **why**.", "Because of that."
FIXED = ("-c", 2048, "-t", 1, "--temp", 0)


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("thinkers")
    return {n: write_thinker(folder / f"{n}.gguf", t) for n, t in THINKERS.items()}


@pytest.fixture(params=THINKERS)
def model(request: pytest.FixtureRequest, paths: dict[str, Path]) -> Path:
    return paths[request.param]


@pytest.fixture
def served(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    monkeypatch.setattr(platformdirs, "user_state_dir", lambda name: str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    options = LoadOptions(n_ctx=2048, threads=1, sequences=2)
    with published_server(model, tmp_path, options):
        yield


@pytest.fixture
def chat(
    model: Path, cache: Path, capfd: pytest.CaptureFixture[str]
) -> Callable[..., Outcome]:
    """Messages and commands in a chat, with a server unless `--server off` is given."""
    command = import_module("edgecs_cli.commands.chat").chat

    def call(*lines: str, more: tuple[object, ...] = ()) -> Outcome:
        given = [*map(str, ("-m", model, *FIXED, "--no-history", *more))]
        with command.make_context("chat", given) as context:
            values, interrupt = context.params, Interrupt()
            call, start = taken(Call, values), taken(Start, values)
            opening = open_here if values["server"] == "off" else open_served
            with opening(values, start, call, interrupt) as talk:
                deck = deck_of(talk, NoReader(), interrupt, call)
                for line in lines:
                    if line.startswith("/"):
                        run(deck, line)
                    else:
                        deck.answer(lambda line=line: talk.ask(line))
        return Outcome(0, *capfd.readouterr())

    return call


def lines_of(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


WHOLE = ["<think>", THOUGHT, "</think>", ANSWER]


def test_an_answer_has_its_thoughts_between_tags(edgecs: Edgecs, model: Path):
    done = edgecs("generate", "-m", model, *FIXED, "-p", "why?")
    assert lines_of(done.out) == WHOLE
    told = edgecs("generate", "-m", model, *FIXED, "-p", "why?", "--json")
    found = json.loads(told.out)
    assert found["text"].rstrip("\n") == done.out.rstrip("\n")
    assert len(found["tokens"]) == found["usage"]["completion_tokens"]
    explained = edgecs("generate", "-m", model, *FIXED, "-p", "why?", "--explain")
    assert THOUGHT.split()[-1] in explained.out


def test_thoughts_that_are_cut_off_have_no_end(
    edgecs: Edgecs, model: Path, monkeypatch: pytest.MonkeyPatch
):
    cut = edgecs("generate", "-m", model, *FIXED, "-p", "why?", "-n", 5, "--no-spec")
    assert cut.out.startswith("<think>")
    assert "They ask" in cut.out
    assert "</think>" not in cut.out
    interrupt_at(monkeypatch, 6)
    stopped = edgecs("generate", "-m", model, *FIXED, "-p", "why?", "--no-spec")
    assert stopped.code == 130
    assert stopped.out.startswith("<think>")
    assert "They" in stopped.out
    assert "</think>" not in stopped.out


def test_raw_texts_are_left_as_they_are(edgecs: Edgecs, paths: dict[str, Path]):
    model = paths["gpt-oss"]
    done = edgecs("generate", "-m", model, *FIXED, "-p", "t", "--raw")
    tokens = THINKERS["gpt-oss"].tokens[:-1]
    assert done.out == "".join(tokens).replace("Ġ", " ") + "\n"


def test_a_chat_folds_thoughts_or_shows_them(chat: Callable[..., Outcome]):
    off = ("--server", "off")
    done = chat("why?", "/set think on", "and?", "/regen", more=off)
    assert lines_of(done.out) == [ANSWER, *WHOLE, *WHOLE]
    assert " characters, folded" in done.err
    cut = chat("why?", more=(*off, "-n", 5))
    assert cut.out.strip() == ""
    assert "thinking ... not finished" in cut.err
    explained = chat("/explain", "why?", more=(*off, "--no-spec"))
    assert lines_of(explained.out) == WHOLE


@pytest.mark.usefixtures("served")
def test_a_server_says_the_same(
    edgecs: Edgecs, model: Path, chat: Callable[..., Outcome]
):
    ask = ("generate", "-m", model, *FIXED, "-p", "why?")
    for more in (
        (),
        ("--stop", "of"),
        ("-n", 4),
        ("--no-spec", "--explain"),
        ("--raw",),
    ):
        theirs, ours = edgecs(*ask, *more), edgecs(*ask, *more, "--server", "off")
        assert "served by" in theirs.err
        assert "served by" not in ours.err
        assert (theirs.code, theirs.out) == (ours.code, ours.out), more
    told = [
        json.loads(edgecs(*ask, "--json", *more).out)
        for more in ((), ("--server", "off"))
    ]
    assert told[0]["text"] == told[1]["text"]
    assert told[0]["tokens"] == told[1]["tokens"]
    lines = ("why?", "/set think on", "and?", "/regen", "/set think off", "then?")
    theirs, ours = chat(*lines), chat(*lines, more=("--server", "off"))
    assert theirs.out == ours.out
    assert lines_of(ours.out) == [ANSWER, *WHOLE, *WHOLE, ANSWER]


words = st.text("ab<|>/\n think", max_size=12).filter(
    lambda text: "<" not in text and ">" not in text
)


@given(words, words, st.lists(st.integers(0, 80), max_size=6))
def test_what_is_folded_and_what_is_shown_have_the_same_answer(
    thought: str, answer: str, places: list[int]
):
    """However the text was cut, in every form."""
    wrap = WordWrap(lambda: None)
    said = {
        "gpt-oss": f"<|channel|>analysis<|message|>{thought}<|end|><|start|>assistant"
        f"<|channel|>final<|message|>{answer}",
        "Gemma 4": f"<|channel>thought\n{thought}<channel|>{answer}",
    }
    for name, whole in said.items():
        form = AnswerForm.of(THINKERS[name].template)
        cuts = sorted({0, len(whole), *(min(at, len(whole)) for at in places)})
        texts = [whole[a:b] for a, b in itertools.pairwise(cuts)]
        tokens = [Token(i, text, "target") for i, text in enumerate(texts)]
        folded = "".join(shown(tokens, wrap, looks=False, folds=True, form=form))
        open_ = "".join(shown(tokens, wrap, looks=False, folds=False, form=form))
        assert open_.endswith(folded)
        assert folded == (answer if name == "gpt-oss" else answer.lstrip("\n"))
        inner = open_.removesuffix(folded)
        kept = thought if name == "gpt-oss" else thought.lstrip("\n")
        if kept:
            assert inner.startswith(f"<think>\n{kept}")
