"""The default model, for real: fetched, loaded, answering, token by token the same."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgecs.chat.chat import Chat
from edgecs.chat.conversation import Conversation
from edgecs.drafters.maxgram import MaxGram
from edgecs.engines.load_options import LoadOptions
from edgecs.hub.manifest import known_manifests
from edgecs.runtime.loader import Loaded, load
from edgecs.sampling.settings import Sampling
from edgecs.session.answer import Token
from edgecs.testing.fakes import ScriptedDrafter
from edgecs.text.chat_template import ChatTemplate
from tests.conftest import DEFAULT_MODEL
from tests.reference import plain_greedy

pytestmark = pytest.mark.model

TEXTS = [
    "The days of the week are Monday, Tuesday, Wednesday,",
    "def add(a, b):\n    return a + b\n\ndef sub(a, b):\n",
    "A recipe: take two eggs, two spoons of sugar and two spoons of flour.",
]


@pytest.fixture(scope="module", params=["auto", "llama"])
def target(model_path: Path, request: pytest.FixtureRequest) -> Iterator[Loaded]:
    """The model with edgecs's kernels where they can be had, and with llama.cpp's."""
    with load(model_path, LoadOptions(n_ctx=1024, kernels=request.param)) as loaded:
        yield loaded


@pytest.mark.parametrize("draft_max", [1, 3, 7, 15])
def test_tokens_are_those_of_plain_decoding(
    target: Loaded, plain: list[tuple[list[int], list[int]]], draft_max: int
):
    size = target.target.vocab_size
    accepted = rejected = wider = rounds = 0
    for prompt, answer in plain:
        wrong = ScriptedDrafter([*prompt, *answer], wrong=0.5, vocab_size=size)
        for drafter in (MaxGram(), wrong):
            target.target.reset()
            with target.session([drafter], draft_max) as session:
                stream = session.generate(prompt, max_tokens=64)
                assert [token.id for token in stream] == answer
                stats = session.stats
            accepted += stats.accepted
            rejected += stats.tested - stats.accepted
            rounds += stats.rounds
            wider += stats.rounds - stats.rounds_by_width.get(1, 0)
    # The comparison means something only if drafts were tried, and failed too.
    assert accepted > 0
    assert rejected > 0
    assert wider / rounds >= 0.2


@pytest.fixture(scope="module")
def plain(target: Loaded, model_path: Path) -> list[tuple[list[int], list[int]]]:
    """Prompts as ids, and what plain decoding with the same kernels says to them."""
    model = target.model
    prompts = [model.vocabulary.encode(text).tolist() for text in TEXTS]
    answers = plain_greedy(model_path, prompts, 64, n_ctx=1024, kernels=model.kernels)
    return list(zip(prompts, answers, strict=True))


def test_what_was_fetched_is_what_the_manifest_says(model_path: Path):
    assert model_path.stat().st_size == known_manifests()[DEFAULT_MODEL].size


def test_the_second_turn_computes_only_what_is_new(smollm: Loaded):
    chat = ChatTemplate(smollm.model.vocabulary)
    smollm.target.reset()
    with smollm.session([MaxGram()], 3) as session:
        messages = [{"role": "user", "content": "Name three colours."}]
        first = "".join(
            t.text for t in session.generate(chat.encode(messages), max_tokens=40)
        )
        messages += [
            {"role": "assistant", "content": first},
            {"role": "user", "content": "And three animals?"},
        ]
        list(session.generate(chat.encode(messages), max_tokens=4))
        stats = session.stats
    assert stats.prompt_tokens - stats.cached_tokens < 30 < stats.cached_tokens


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_chat_is_the_same_with_and_without_drafts(smollm: Loaded, temperature: float):
    """Turn after turn, also behind a stop string, a limit, /undo and /regen."""
    heard = []
    rule = smollm.rule(Sampling(temperature, seed=3))
    for drafters, most in (([], 0), ([MaxGram()], 3)):
        smollm.target.reset()
        said: list[list[int]] = []
        with smollm.session(drafters, most, rule=rule) as session:
            vocabulary = smollm.model.vocabulary
            talk = Conversation(ChatTemplate(vocabulary), vocabulary)
            talk.set_system("Be brief.")
            chat = Chat(session, talk, max_tokens=40)

            def hear(tokens: Iterator[Token], said: list[list[int]] = said) -> None:
                said.append([token.id for token in tokens])

            hear(chat.ask("Repeat three times: the red house"))
            chat.stop = ("house",)
            hear(chat.ask("Once more."))
            chat.stop = ()
            hear(chat.again())
            chat.undo()
            hear(chat.ask("And now the blue house, three times."))
            hear(chat.ask("Thank you."))
            assert session.stats.cached_tokens > session.stats.prompt_tokens // 2
            said += [[*m.ids] for m in chat.messages if m.ids]
        heard.append(said)
    assert heard[0] == heard[1]


def test_the_template_of_the_model_is_understood(smollm: Loaded):
    text = ChatTemplate(smollm.model.vocabulary).render(
        [{"role": "user", "content": "Hi"}]
    )
    assert text.startswith("<|im_start|>system\nYou are a helpful AI assistant")
    assert text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")


def test_text_survives_the_tokenizer(smollm: Loaded):
    vocabulary = smollm.model.vocabulary
    text = "naïve 漢字 🙂 \n\t עברית"
    ids = vocabulary.encode(text, document=False)
    assert b"".join(map(vocabulary.piece, ids.tolist())).decode() == text


def test_a_quantised_cache_gives_an_answer_of_its_own_class(model_path: Path):
    options = LoadOptions(n_ctx=1024, type_k="q8_0", type_v="q8_0")
    with load(model_path, options) as loaded:
        prompt = loaded.model.vocabulary.encode(TEXTS[0])
        answers = []
        for draft_max in (0, 7):
            loaded.target.reset()
            with loaded.session([MaxGram()], draft_max) as session:
                stream = session.generate(prompt, max_tokens=64)
                answers.append([token.id for token in stream])
    assert answers[0] == answers[1]


def test_the_command_answers_without_any_socket(
    edgecs, model_path: Path, no_sockets: None, monkeypatch: pytest.MonkeyPatch
):
    model = ("-m", model_path, "-c", 512, "--temp", 0)
    outcome = edgecs("generate", *model, "-p", "What is 2 + 2?", "-n", 30, "--json")
    report = json.loads(outcome.out)
    assert "4" in report["text"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Say hi.\n")))
    assert edgecs("chat", *model, "-q").code == 0


def test_a_name_finds_the_model_that_is_here(model_path: Path):
    command = [
        sys.executable,
        "-m",
        "edgecs",
        "models",
        "show",
        DEFAULT_MODEL,
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["path"] == str(model_path)
