"""`edgecs memory build`, and what other commands do with files of models."""

from __future__ import annotations

import json
from pathlib import Path

import platformdirs
import pytest

from edgecs.memory.consent import decide
from edgecs.memory.model_files import listed_files
from edgecs.memory.phrases import write_phrases
from edgecs.runtime.loader import Loaded
from edgecs.runtime.remembering import identity_of
from edgecs_bench.memory.phrases import read_phrases
from edgecs_convert.distill import data
from edgecs_convert.distill.samples import numbers, write_shard
from tests.commands import Edgecs, generate, one_line
from tests.convert.samples import sample


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the memory of the user is."""
    found = tmp_path / "data"
    monkeypatch.setattr(platformdirs, "user_data_dir", lambda name: str(found / name))
    return found / "edgecs" / "memory"


def built(edgecs: Edgecs, model: Path, *more: object) -> str:
    small = ("--tokens", 1000, "--answer", 16, "--parallel", 8, "-t", 1)
    done = edgecs("memory", "build", "-m", model, *small, *more)
    assert done.code == 0, done.err
    return str(done.out)


def test_phrases_are_built_used_shown_and_deleted_alone(
    edgecs: Edgecs, tiny_gguf: Path, folder: Path, cache: Path, tmp_path: Path
):
    said = built(edgecs, tiny_gguf)
    assert said.startswith(f"{tiny_gguf.stem}: phrases of ")
    assert not (cache.parent / "phrases" / tiny_gguf.stem).exists()
    (file,) = listed_files(folder)
    assert sum(map(len, read_phrases(file.path))) >= 1000
    ask = ("-n", 12, "--server", "off")
    plain = generate(edgecs, tiny_gguf, *ask, "--no-spec").out
    with_them = generate(edgecs, tiny_gguf, *ask, "-v", "--memory", "auto")
    assert with_them.out == plain
    assert "tokens of the model's phrases" in with_them.err
    assert not (folder / "memory.db").exists()
    (tmp_path / "a").write_text("text")
    edgecs("memory", "add", tmp_path / "a")
    shown = edgecs("memory", "show")
    assert f"phrases  {tiny_gguf.stem}" in shown.out
    assert "phrases of 1 model" in shown.err
    (one,) = json.loads(edgecs("memory", "show", "--json").out)["models"]
    assert (one["kind"], one["model"]) == ("phrases", tiny_gguf.stem)
    assert one["bytes"] == file.size
    one_line(edgecs("memory", "clear", "--only", "phrases", 1, "-y"), 2, "not both")
    done = edgecs("memory", "clear", "--only", "phrases", "-y")
    assert done.err == "phrases of 1 model deleted\n"
    assert listed_files(folder) == []
    assert len(json.loads(edgecs("memory", "show", "--json").out)["documents"]) == 1


def test_with_the_memory_off_phrases_are_built_and_not_used(
    edgecs: Edgecs, tiny_gguf: Path, folder: Path
):
    decide(folder, False)
    small = ("--tokens", 1000, "--answer", 16, "--parallel", 8, "-t", 1)
    done = edgecs("memory", "build", "-m", tiny_gguf, *small)
    assert "the memory is off, so they are not used" in done.err
    ask = ("-n", 2, "--server", "off", "-v", "--memory", "auto")
    assert "phrases" not in generate(edgecs, tiny_gguf, *ask).err


def test_a_build_that_was_interrupted_goes_on(
    edgecs: Edgecs,
    tiny_gguf: Path,
    folder: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(data, "_SHARD", 8)
    work = cache.parent / "phrases" / tiny_gguf.stem
    seen = list[int]()

    def interrupted(where: Path, few: list[object], without: list[int]) -> int:
        if len(seen) == 2:
            few.clear()
            raise KeyboardInterrupt
        seen.append(len(few))
        return keep(where, few, without)  # type: ignore[arg-type]

    keep = data._keep
    with monkeypatch.context() as context:
        context.setattr(data, "_keep", interrupted)
        small = ("--tokens", 1000, "--answer", 16, "--parallel", 8, "-t", 1)
        assert edgecs("memory", "build", "-m", tiny_gguf, *small).code != 0
    known, tokens = numbers(work)
    assert len(known) == sum(seen)
    assert listed_files(folder) == []
    asked = list[set[int]]()
    tasks = data._tasks
    monkeypatch.setattr(
        data,
        "_tasks",
        lambda m, w, done, n: asked.append({*done}) or tasks(m, w, done, n),
    )
    built(edgecs, tiny_gguf)
    assert asked == [known]
    assert tokens
    assert len(listed_files(folder)) == 1


def answers(work: Path, name: str, **more: object) -> None:
    """Answers as a distillation of a model has them."""
    write_shard(work / "samples", [sample(number, 5, 20) for number in range(3)])
    noted = {"target": name, **more}
    (work / "samples" / data.NOTED).write_text(json.dumps(noted))


@pytest.mark.parametrize("below", ["", "samples"])
def test_answers_of_a_distillation_are_taken(
    edgecs: Edgecs, tiny_gguf: Path, folder: Path, tmp_path: Path, below: str
):
    work = tmp_path / "work"
    answers(work, tiny_gguf.name)
    write_shard(work / "head-own", [sample(n, 5, 9) for n in (1, 1)])  # of a drafter
    built(edgecs, tiny_gguf, "--from", work / below)
    (file,) = listed_files(folder)
    said = [sample(number, 5, 20).tokens[5:].tolist() for number in range(3)]
    assert sorted(read_phrases(file.path)) == sorted(said)


def test_answers_that_cannot_be_taken_are_a_sentence(
    edgecs: Edgecs, tiny_gguf: Path, tmp_path: Path, folder: Path
):
    build = ("memory", "build", "-m", tiny_gguf, "--from", tmp_path / "work")
    assert edgecs(*build).code == 2
    (tmp_path / "work").mkdir()
    one_line(edgecs(*build), 2, "has no answers", "edgecs distill --work")
    answers(tmp_path / "work", "other.gguf")
    one_line(edgecs(*build), 2, "are from 'other.gguf', not from")
    noted = tmp_path / "work" / "samples" / data.NOTED
    for text in ("", "[" * 5000, "[]", '{"target": {}}'):
        noted.write_text(text)
        assert edgecs(*build).code == 2
    noted.unlink()
    one_line(edgecs(*build), 2, "does not say which model")
    noted.write_text(json.dumps({"target": tiny_gguf.name}))
    (shard,) = (tmp_path / "work" / "samples").glob("*.npz")
    odd = sample(7, 5, 9)
    odd.tokens[:] = 1 << 20
    write_shard(tmp_path / "work" / "samples", [odd])
    one_line(edgecs(*build), 2, "ids that are no tokens of this model")
    shard.write_bytes(b"x")
    done = edgecs(*build)
    assert done.code not in (0, 1)
    assert "cannot be read" in done.err
    assert listed_files(folder) == []


def test_recycled_rows_are_shown_exported_and_deleted(
    edgecs: Edgecs, tiny_gguf: Path, folder: Path, tmp_path: Path
):
    decide(folder, True)
    ask = ("-n", 12, "--server", "off", "--memory", "auto")
    trees = ("--draft-leaves", 4, "--exact", "numeric")
    assert generate(edgecs, tiny_gguf, *ask, *trees).code == 0
    (file,) = listed_files(folder)
    assert file.kind == "recycling"
    shown = edgecs("memory", "show")
    assert f"recycling  {tiny_gguf.stem}" in shown.out
    assert "recycled rows of 1 model" in shown.err
    out = tmp_path / "all.jsonl"
    said = f"1 texts and recycled rows of 1 model in {out}\n"
    assert edgecs("memory", "export", "-o", out).err == said
    lines = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    assert lines[1]["kind"] == "recycling"
    assert lines[1]["after_one"]
    done = edgecs("memory", "clear", "--yes")
    assert done.err == "1 texts deleted, recycled rows of 1 model deleted\n"
    assert not file.path.exists()
    edgecs("memory", "off")
    generate(edgecs, tiny_gguf, *ask, *trees)
    assert listed_files(folder) == []


@pytest.mark.model
def test_all_stores_on_change_no_answer_of_the_default_model(
    edgecs: Edgecs, smollm: Loaded, model_path: Path, tmp_path: Path
):
    """An audit with phrases, recycled rows, added texts and kept answers.

    The rows of trees have other bits, whatever is drafted: no answer is to differ in a
    strict tier.
    """
    mine, text = tmp_path / "mine", "The sky is blue because air scatters light. "
    here = ("--memory", mine)
    (tmp_path / "a.txt").write_text(text * 9)
    edgecs("memory", "add", tmp_path / "a.txt", *here)
    said = smollm.model.vocabulary.encode(f"Light is a wave. {text}")
    write_phrases(mine, identity_of(smollm), [said.tolist()])
    trees = ("--draft-leaves", 4, "--exact", "numeric")
    ask = ("generate", "-m", model_path, "-c", 1024, "-n", 32, "--server", "off")
    question = ("-p", "Why is the sky blue?", "--temp", 0)
    assert edgecs(*ask, *question, *trees, *here).code == 0
    kinds = [one.kind for one in listed_files(mine)]
    assert kinds == ["phrases", "recycling"]
    for more in ((), trees):
        audit = ("audit", "-m", model_path, "-c", 1024, "-n", 16, "--limit", 1)
        done = edgecs(*audit, "-q", "--json", *here, *more)
        assert done.code == 0, done.err
        report = json.loads(done.out)
        assert report["identical"] or more
        assert {"user", "phrases"} < {*report["chain"]}
        assert ("recycling" in report["chain"]) is bool(more)
