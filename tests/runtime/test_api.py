"""The library in one call, and the examples of its documentation."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from contextlib import suppress
from dataclasses import fields
from pathlib import Path

import numpy as np
import psutil
import pytest

import edgecs
from edgecs.engines.load_options import LoadOptions
from edgecs.errors import ConfigError, ModelError
from edgecs.hub.download import Progress
from edgecs.hub.store import Store
from edgecs.runtime import builder, folders
from edgecs.sampling.settings import Sampling, Settings
from tests.conftest import before_calls

PAGE = Path(__file__).parents[2] / "docs" / "python.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.S)
SMALL = LoadOptions(n_ctx=512)


def text(model: edgecs.Model, prompt: str = "hello", **more: object) -> str:
    tokens = model.generate(prompt, max_tokens=20, **more)  # type: ignore[arg-type]
    return "".join(token.text for token in tokens)


def test_answers_are_the_same_with_and_without_drafts(tiny_gguf: Path, tmp_path: Path):
    said = []
    for speculate in (True, False):
        model = edgecs.load(tiny_gguf, SMALL, speculate=speculate, folder=tmp_path)
        with model:
            assert model.stats.tokens == 0
            answers = [text(model, "abc abc abc"), text(model, "abc", raw=True)]
            sampled = Sampling(temperature=0.8, seed=3)
            answers.append(text(model, "hello", sampling=sampled))
            said.append(answers)
            assert model.finish_reason in ("stop", "length")
            assert (model.runtime.speculation is not None) is speculate
    assert said[0] == said[1]
    assert list((tmp_path / "profiles").iterdir())


def test_drafters_may_be_given(tiny_gguf: Path, tmp_path: Path):
    with edgecs.load(tiny_gguf, SMALL, folder=tmp_path) as model:
        plain = text(model)
    with edgecs.load(tiny_gguf, SMALL, drafts=[tiny_gguf], folder=tmp_path) as model:
        assert text(model) == plain
        assert model.session.chain == ["target", "tiny", "mag", "recent", "bigram"]


def test_one_process_renders_all_prompts_of_a_model(tiny_gguf: Path, tmp_path: Path):
    with edgecs.load(tiny_gguf, SMALL, speculate=False, folder=tmp_path) as model:
        before = {process.pid for process in psutil.Process().children()}
        assert [text(model), text(model), [*model.chat(max_tokens=2).ask("hi")]]
        assert len({p.pid for p in psutil.Process().children()} - before) == 1
    assert {p.pid for p in psutil.Process().children()} <= before


def test_a_chat_goes_on(tiny_gguf: Path, tmp_path: Path):
    with edgecs.load(tiny_gguf, SMALL, folder=tmp_path) as model:
        chat = model.chat("Be brief.", max_tokens=8)
        first = [t.id for t in chat.ask("hi")]
        assert [t.id for t in chat.again()] == first
        assert [*chat.ask("ho")]
        assert [m.role for m in chat.messages] == (
            ["system", "user", "assistant", "user", "assistant"]
        )


def test_messages_are_prompts_too(tiny_gguf: Path, tmp_path: Path):
    messages = [{"role": "user", "content": "hello"}]
    with edgecs.load(tiny_gguf, SMALL, folder=tmp_path) as model:
        tokens = model.generate(messages, max_tokens=20)
        assert "".join(t.text for t in tokens) == text(model)
        with pytest.raises(ConfigError, match="raw needs a text"):
            model.generate(messages, raw=True)


def test_settings_are_keywords(tiny_gguf: Path, tmp_path: Path):
    assert {*Settings.__annotations__} == {field.name for field in fields(Sampling)}
    with edgecs.load(tiny_gguf, SMALL, folder=tmp_path) as model:
        sampled = Sampling(temperature=0.8, top_k=40, seed=3)
        said = text(model, sampling=sampled)
        assert text(model, temperature=0.8, top_k=40, seed=3) == said
        assert text(model, sampling=sampled, seed=3) == said
        assert text(model, sampling=sampled, temperature=0) == text(model)
        assert model.ask("hello", max_tokens=20, temperature=0.8, top_k=40, seed=3) == (
            said
        )
        with pytest.raises(TypeError, match="temp"):
            model.generate("hello", temp=0.8)  # type: ignore[call-arg]
        with pytest.raises(ConfigError, match="top_p must be between"):
            model.generate("hello", top_p=3)


def test_answers_keep_to_a_grammar_or_a_schema(tiny_gguf: Path, tmp_path: Path):
    schema = {"enum": ["yes", "no"]}
    with edgecs.load(tiny_gguf, SMALL, folder=tmp_path) as model:
        assert model.ask("hello", grammar='root ::= "yes" | "no"') in ("yes", "no")
        assert json.loads(model.ask("hello", schema=schema)) in ("yes", "no")
        assert json.loads(model.ask("hello", schema='{"const": 1}')) == 1
        with pytest.raises(ConfigError, match="grammar and schema cannot be combined"):
            model.generate("hello", grammar='root ::= "a"', schema=schema)
        with pytest.raises(ConfigError, match="grammar"):
            model.generate("hello", grammar="root ::= (")
        chat = model.chat(grammar='root ::= "yes"')
        assert "".join(t.text for t in chat.ask("hello")) == "yes"
        no = model.rule(grammar='root ::= "no"')
        assert "".join(t.text for t in chat.ask("hello", rule=no)) == "no"
        assert text(model) not in ("yes", "no")  # the chat's rule is the chat's alone


def test_log_probabilities_are_those_of_the_row(tiny_gguf: Path, tmp_path: Path):
    with edgecs.load(tiny_gguf, SMALL, folder=tmp_path) as model:
        plain = [*model.generate("hello abc abc", max_tokens=12)]
        assert all(token.logprobs is None for token in plain)
        stated = [*model.generate("hello abc abc", max_tokens=12, logprobs=3)]
        assert [(t.id, t.text) for t in stated] == [(t.id, t.text) for t in plain]
        prompt = model.session.context.tokens[: model.stats.prompt_tokens].tolist()
        noted: list[np.ndarray] = []

        def noting(row: np.ndarray, tokens: np.ndarray) -> int:
            noted.append(row.astype(np.float64))
            return edgecs.greedy(row, tokens)

        with edgecs.load(tiny_gguf, SMALL, speculate=False, folder=tmp_path) as other:
            rule = edgecs.always(noting)
            [*other.session.generate(prompt, max_tokens=12, rule=rule)]
        for token, row in zip(stated, noted, strict=True):
            law = row - np.log(np.exp(row - row.max()).sum()) - row.max()
            found = token.logprobs
            assert found is not None
            assert found.top[0] == (token.id, found.logprob)  # it is greedy
            assert [id for id, _ in found.top] == np.argsort(-law)[:3].tolist()
            got = [found.logprob, *(p for _, p in found.top)]
            expected = [law[token.id], *np.sort(law)[::-1][:3]]
            np.testing.assert_allclose(got, expected, atol=1e-3)
        (first, *_) = model.generate("hello", max_tokens=1, logprobs=0, temperature=2)
        assert first.logprobs is not None
        assert first.logprobs.top == ()
        with pytest.raises(ConfigError, match="logprobs must be 0 or more"):
            model.generate("hello", logprobs=-1)


def test_a_conversation_goes_on_from_messages(tiny_gguf: Path, tmp_path: Path):
    said = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "ho"},
    ]
    asked = {"role": "user", "content": "go on"}
    with edgecs.load(tiny_gguf, SMALL, folder=tmp_path) as model:
        whole = model.ask([*said, asked], max_tokens=9)
        chat = model.chat(messages=said, max_tokens=9)
        assert "".join(t.text for t in chat.ask("go on")) == whole
        again = model.chat("Be brief.", messages=said[1:], max_tokens=9)
        assert "".join(t.text for t in again.ask("go on")) == whole
        for messages, why in (
            ([*said, asked], "give that one to ask"),
            ([said[0], said[0]], "message 2 is the system's"),
            ([said[2]], "message 1 is the assistant's"),
            ([said[1], said[1]], "message 2 is the user's"),
            ([{"role": "x", "content": ""}], "must have a role"),
            ([{"role": "user", "content": 3}], "must have a role"),
        ):
            with pytest.raises(ConfigError, match=why):
                model.chat(messages=messages)  # type: ignore[arg-type]


def test_downloads_are_told(tmp_path: Path, tiny_gguf: Path):
    told: list[tuple[str, int, int]] = []

    class Telling(Store):
        def path(self, reference: str, progress: Progress = print) -> Path:
            progress("mine", 1, 2)
            return tiny_gguf

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folders, "Store", Telling)
        with edgecs.load(
            "mine", SMALL, folder=tmp_path, progress=lambda *done: told.append(done)
        ):
            assert told == [("mine", 1, 2)]


def test_the_drafter_that_comes_with_a_model_is_used_where_it_pays(
    tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for why, chain in (
        (None, ["target", "tiny", "mag", "recent", "bigram"]),
        ("it does not pay", None),
    ):
        monkeypatch.setattr(builder, "bundled_for", lambda name: tiny_gguf)
        monkeypatch.setattr(builder, "left_out", lambda folder, known, why=why: why)
        with edgecs.load(tiny_gguf, SMALL, folder=tmp_path) as model:
            assert model.session.chain == (
                chain or ["target", "mag", "recent", "bigram"]
            )
        with edgecs.load(tiny_gguf, SMALL, folder=tmp_path, drafts=[]) as model:
            assert model.session.chain == ["target", "mag", "recent", "bigram"]


class TestStopping:
    def test_an_answer_is_stopped_from_another_thread(
        self, tiny_gguf: Path, tmp_path: Path
    ):
        with edgecs.load(tiny_gguf, SMALL, folder=tmp_path) as model:
            whole = text(model)
            said = []
            for token in model.generate("hello", max_tokens=300):
                said.append(token)
                if len(said) == 4:
                    other = threading.Thread(target=model.stop)
                    other.start()
                    other.join()
            assert model.finish_reason == "cancelled"
            assert 4 <= len(said) < 100
            model.stop()  # there is nothing to stop: it concerns nobody
            assert text(model) == whole

    def test_a_prompt_is_not_read_to_its_end(
        self, tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        options = LoadOptions(n_ctx=512, n_batch=64)
        with edgecs.load(tiny_gguf, options, folder=tmp_path, speculate=False) as model:
            calls = before_calls(monkeypatch, lambda n: model.stop())
            assert [*model.generate("x" * 300, raw=True)] == []
            assert model.finish_reason == "cancelled"
            assert len(calls) == 1

    @pytest.mark.parametrize("ends", [False, True])
    def test_an_answer_that_did_not_begin(
        self, tiny_gguf: Path, tmp_path: Path, ends: bool
    ):
        with edgecs.load(tiny_gguf, SMALL, folder=tmp_path) as model:
            whole = text(model)
            waiting = model.generate("hello", max_tokens=20)
            model.stop()
            if ends:
                assert [*waiting] == []
                assert model.finish_reason == "cancelled"
            assert text(model) == whole

    def test_who_cancels_all_is_not_forgotten(self, tiny_gguf: Path, tmp_path: Path):
        with edgecs.load(tiny_gguf, SMALL, folder=tmp_path) as model:
            cancel = model.loaded.cancel
            waiting = model.generate("hello", max_tokens=20)
            cancel.set()
            model.stop()
            assert [*waiting] == []
            assert cancel.is_set()
            cancel.clear()

    def test_two_threads_are_told(self, tiny_gguf: Path, tmp_path: Path):
        with edgecs.load(tiny_gguf, SMALL, folder=tmp_path) as model:
            inside, go_on = threading.Event(), threading.Event()

            def slowly(context: object, done: object) -> None:
                inside.set()
                assert go_on.wait(60)

            model.session.on_round = slowly
            answer = model.generate("hello", max_tokens=8)
            other = threading.Thread(target=lambda: [*answer])
            other.start()
            assert inside.wait(60)
            with pytest.raises(ConfigError, match="another thread is generating"):
                model.generate("hello")
            go_on.set()
            other.join()
            model.session.on_round = None
            assert text(model)


class TestEventLoop:
    """Tasks that begin, leave and cancel answers, of one model."""

    def test_an_answer_that_was_left_does_not_end_the_next(
        self, tiny_gguf: Path, tmp_path: Path
    ):
        async def leave(model: edgecs.Model) -> str:
            async for _ in model.agenerate("abc abc", max_tokens=200):
                break
            tokens = model.agenerate("hello", max_tokens=20)
            return "".join([token.text async for token in tokens])

        with edgecs.load(tiny_gguf, SMALL, folder=tmp_path) as model:
            whole = text(model)
            for _ in range(20):
                assert asyncio.run(leave(model)) == whole
                assert model.finish_reason in ("stop", "length")

    def test_a_task_that_is_cancelled_ends_its_own_answer_alone(
        self, tiny_gguf: Path, tmp_path: Path
    ):
        async def run(model: edgecs.Model, wait: float) -> str:
            async def first() -> None:
                async for _ in model.agenerate("abc abc", max_tokens=400):
                    pass

            task = asyncio.create_task(first())
            await asyncio.sleep(wait)
            tokens = model.agenerate("hello", max_tokens=20)
            said = [(await anext(tokens)).text]
            task.cancel()
            said += [token.text async for token in tokens]
            with suppress(asyncio.CancelledError):
                await task
            return "".join(said)

        with edgecs.load(tiny_gguf, SMALL, folder=tmp_path) as model:
            whole = text(model)
            for wait in (0, 0, 0.001, 0.01, 0.02, 0.05):
                assert asyncio.run(run(model, wait)) == whole

    def test_a_chat(self, tiny_gguf: Path, tmp_path: Path):
        async def talk(model: edgecs.Model) -> list[str]:
            chat = model.achat("Be brief.", max_tokens=6, temperature=0.8, seed=1)
            said = []
            for message in ("hi", "ho"):
                said.append("".join([t.text async for t in chat.ask(message)]))
            said.append("".join([t.text async for t in chat.again()]))
            assert [m.role for m in chat.messages][-2:] == ["user", "assistant"]
            assert chat.finish_reason in ("stop", "length")
            assert chat.asked.left_out == 0
            assert len(chat.undo()) == 2
            async for _ in chat.ask("left after a token"):
                break
            return said

        with edgecs.load(tiny_gguf, SMALL, folder=tmp_path) as model:
            chat = model.chat("Be brief.", max_tokens=6, temperature=0.8, seed=1)
            said = ["".join(t.text for t in chat.ask(m)) for m in ("hi", "ho")]
            assert asyncio.run(talk(model)) == [*said, said[-1]]

    def test_errors_come_where_they_are_awaited(self, tiny_gguf: Path, tmp_path: Path):
        async def fails(model: edgecs.Model) -> None:
            with pytest.raises(ConfigError, match="raw needs a text"):
                await anext(model.agenerate([], raw=True))
            with pytest.raises(ConfigError, match="empty"):
                await anext(model.achat().ask(" "))

        model = edgecs.load(tiny_gguf, SMALL, folder=tmp_path)
        with model:
            asyncio.run(fails(model))

        async def too_late() -> None:
            with pytest.raises(ModelError, match="was closed"):
                await anext(model.agenerate("hello"))

        asyncio.run(too_late())

    def test_a_model_that_is_closed_ends_its_answers(
        self, tiny_gguf: Path, tmp_path: Path
    ):
        async def closed() -> int:
            model = edgecs.load(tiny_gguf, SMALL, folder=tmp_path)
            tokens = model.agenerate("hello", max_tokens=400)
            await anext(tokens)
            model.close()
            with suppress(ModelError):
                return len([token async for token in tokens])
            return 0

        assert asyncio.run(closed()) < 100


def test_an_answer_beside_an_event_loop(tiny_gguf: Path, tmp_path: Path):
    async def hear(model: edgecs.Model, most: int) -> list[str]:
        said: list[str] = []
        stream = model.agenerate("hello", max_tokens=20)
        async for token in stream:
            said.append(token.text)
            if len(said) == most:
                break
        await stream.aclose()
        return said

    async def cancelled(model: edgecs.Model) -> None:
        task = asyncio.create_task(hear(model, 10_000))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with edgecs.load(tiny_gguf, SMALL, folder=tmp_path) as model:
        whole = text(model)
        assert "".join(asyncio.run(hear(model, 100))) == whole
        part = asyncio.run(hear(model, 5))
        assert len(part) == 5
        assert whole.startswith("".join(part))
        asyncio.run(cancelled(model))
        assert text(model) == whole


def test_what_is_no_model_is_named(tmp_path: Path):
    with pytest.raises(ModelError, match="there is no file"):
        edgecs.load(tmp_path / "none.gguf", folder=tmp_path)
    with pytest.raises(ModelError, match="did you mean 'smollm2-135m-instruct'"):
        edgecs.load("smollm2-135m-instuct", folder=tmp_path, offline=True)


def test_all_names_are_there():
    assert all(hasattr(edgecs, name) for name in edgecs.__all__)
    assert len(EXAMPLES) == 7


@pytest.mark.model
@pytest.mark.parametrize("number", range(7))
def test_the_examples_work(
    number: int, model_path: Path, capsys: pytest.CaptureFixture[str]
):
    names: dict[str, object] = {}
    exec(EXAMPLES[number], names)
    if number == 5:
        answer = names["answer"]
        assert callable(answer)
        assert answer(model_path, model_path, "Once upon a time")
    elif number != 1:
        assert capsys.readouterr().out.strip()
