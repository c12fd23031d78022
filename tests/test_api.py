"""The library in one call, and the examples of its documentation."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import psutil
import pytest

import edgecs
from edgecs.errors import ConfigError, ModelError
from edgecs.options import LoadOptions
from edgecs.sampling import Sampling

PAGE = Path(__file__).parents[1] / "docs" / "python.md"
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
            assert (model.speculation is not None) is speculate
    assert said[0] == said[1]
    assert list((tmp_path / "profiles").iterdir())


def test_drafters_may_be_given(tiny_gguf: Path, tmp_path: Path):
    with edgecs.load(tiny_gguf, SMALL, folder=tmp_path) as model:
        plain = text(model)
    with edgecs.load(tiny_gguf, SMALL, drafts=[tiny_gguf], folder=tmp_path) as model:
        assert text(model) == plain
        assert model.session.chain == ["target", "tiny", "mag"]


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
        with pytest.raises(ConfigError, match="raw takes a text"):
            model.generate(messages, raw=True)


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
    assert len(EXAMPLES) == 5


@pytest.mark.model
@pytest.mark.parametrize("number", range(5))
def test_the_examples_work(
    number: int, model_path: Path, capsys: pytest.CaptureFixture[str]
):
    names: dict[str, object] = {}
    exec(EXAMPLES[number], names)
    if number == 4:
        answer = names["answer"]
        assert callable(answer)
        assert answer(model_path, model_path, "Once upon a time")
    elif number != 1:
        assert capsys.readouterr().out.strip()
