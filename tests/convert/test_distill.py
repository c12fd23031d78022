"""`edgecs distill`: from a model to a drafter and its figures."""

from __future__ import annotations

import json
import shutil
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from edgecs.errors import ModelError
from edgecs.hub.drafter_manifest import parse_drafter, read_drafter
from edgecs_convert.distill.samples import read_samples
from edgecs_convert.distill.target import TargetFile
from tests.commands import one_line
from tests.conftest import Outcome
from tests.convert.samples import Edgecs, needs_export, needs_torch


def make(edgecs: Edgecs, model: Path, folder: Path, *options: object) -> Outcome:
    return edgecs(
        "distill",
        *("-m", model, "-c", 256, "--tokens", 1000, "--answer", 16, "--parallel", 8),
        *("--rows", 120, "--work", folder / "work", "-o", folder / "made", *options),
    )


@needs_torch
@pytest.mark.parametrize(("seconds", "drafts"), [(0.0, 0), (2e-3, 10)])
def test_figures_can_be_read_back_where_nothing_was_measured(
    tmp_path: Path, seconds: float, drafts: int
):
    pipeline = import_module("edgecs_convert.distill.pipeline")
    worth = import_module("edgecs_convert.distill.measure").Worth
    made = pipeline.Candidate(
        "head", tmp_path, 1.0, worth([0.0], seconds, drafts), 4e-3, 1.0, 1.0
    ).state()
    about = {
        "name": "d",
        "description": "",
        "license": "",
        "file": "d.onnx",
        "cache": "growing",
        "window": 64,
        "vocabulary": "0" * 64,
        "made": made,
    }
    assert parse_drafter(about, tmp_path).right == 0
    assert made.get("ms_a_token") == (2.0 if drafts else None)


@needs_torch
@pytest.mark.filterwarnings("ignore")
def test_from_a_model_to_a_drafter_and_its_answers(
    edgecs: Edgecs, tiny_gguf: Path, tmp_path: Path
):
    outcome = make(edgecs, tiny_gguf, tmp_path, "--epochs", 1, "--json")
    assert outcome.code == 0, outcome.err
    report = json.loads(outcome.out)
    manifest = read_drafter(tmp_path / "made")
    assert manifest.made is not None
    assert manifest.made["agreement"] == report["agreement"]
    assert manifest.made["tokens"] >= 1000
    fixed = ("-m", tiny_gguf, "-c", 512, "-p", "hi", "-n", 40, "-q", "--temp", 0)
    plain = edgecs("generate", *fixed, "--no-spec")
    matrix = ("--k-matrix", "2,0;0,0")
    drafted = edgecs("generate", *fixed, "--draft", tmp_path / "made", *matrix)
    assert drafted.out == plain.out

    again = make(edgecs, tiny_gguf, tmp_path, "--epochs", 1)
    one_line(again, 2, "exists already")


@needs_export
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("shape", [("--layers", 2), ("--width", 64, "--layers", 1)])
def test_all_kinds_are_made_and_the_best_is_kept(
    edgecs: Edgecs, tiny_gguf: Path, tmp_path: Path, shape: tuple[object, ...]
):
    kinds = ("--kind", "decoder", "--kind", "head", "--finish", "tvd", *shape)
    outcome = make(edgecs, tiny_gguf, tmp_path, *kinds, "--epochs", 0.2, "--json")
    assert outcome.code == 0, outcome.err
    report = json.loads(outcome.out)
    names = [one["name"] for one in report["candidates"]]
    assert names == ["decoder", "decoder-tvd", "head", "head-tvd"]
    best = max(report["candidates"], key=lambda one: one["expected_speedup"])
    assert report["expected_speedup"] == best["expected_speedup"]
    fixed = ("-m", tiny_gguf, "-c", 512, "-p", "hi", "-n", 30, "-q", "--temp", 0)
    plain = edgecs("generate", *fixed, "--no-spec").out
    for name in names:
        folder = tmp_path / "work" / "drafters" / name
        manifest = read_drafter(folder)
        assert manifest.made is not None
        assert manifest.made["loss"] == ("tvd" if name.endswith("tvd") else "fkl")
        drafted = edgecs("generate", *fixed, "--draft", folder, "--k-matrix", "2,0;0,0")
        assert drafted.out == plain, name
    own = [*read_samples(tmp_path / "work" / "decoder-own")]
    assert sum(s.size for s in own) >= 250
    tiny = read_drafter(tmp_path / "work" / "drafters" / "decoder")
    assert tiny.unknown == 120  # the row for all tokens that it lacks


@needs_export
@pytest.mark.filterwarnings("ignore")
def test_a_decoder_knows_a_whole_vocabulary(
    edgecs: Edgecs, tiny_gguf: Path, tmp_path: Path
):
    kinds = ("--kind", "decoder", "--rows", 272, "--width", 64, "--finish", "jsd")
    outcome = make(edgecs, tiny_gguf, tmp_path, *kinds, "--epochs", 0.2)
    assert outcome.code == 0, outcome.err
    assert "decoder-jsd: first token" in outcome.out
    assert read_drafter(tmp_path / "made").unknown is None


@needs_export
@pytest.mark.parametrize(
    ("shape", "says"),
    [
        (("--width", 100), "a multiple of 64: got 2 layers, 100 wide"),
        (("--width", 128), "wider than its target (64)"),
        (("--layers", 9), "9 layers cannot be kept: the target has 2"),
    ],
)
def test_decoders_that_cannot_be(
    edgecs: Edgecs,
    tiny_gguf: Path,
    tmp_path: Path,
    shape: tuple[object, ...],
    says: str,
):
    one_line(
        make(edgecs, tiny_gguf, tmp_path, "--kind", "decoder", "-q", *shape), 2, says
    )
    # Answers take hours: nothing is begun.
    assert not (tmp_path / "work").exists()


@needs_export
def test_an_architecture_that_no_decoder_can_be_made_from(
    edgecs: Edgecs, tiny_gguf: Path, tmp_path: Path
):
    """Said in one sentence, as the exporter says it."""
    from edgecs_convert.onnx.export import load_weights

    other = tmp_path / "other.gguf"
    other.write_bytes(tiny_gguf.read_bytes().replace(b"llama", b"llamz"))
    with pytest.raises(ModelError, match="transformers cannot read other.gguf") as told:
        load_weights(other)
    assert "\n" not in str(told.value)


@needs_torch
@pytest.mark.filterwarnings("ignore")
def test_what_followed_from_an_older_training_goes_before_a_new_one(
    edgecs: Edgecs, tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A run that is ended after the first candidate must not go on with the old."""
    finish = ("--epochs", 0.1, "--finish", "tvd")
    assert make(edgecs, tiny_gguf, tmp_path, *finish).code == 0
    shutil.rmtree(tmp_path / "made")
    (tmp_path / "work" / "head.pt").unlink()
    assert (tmp_path / "work" / "head-tvd.pt").exists()

    def ended(*arguments: object) -> None:
        raise KeyboardInterrupt

    candidates = import_module("edgecs_convert.distill.candidates")
    monkeypatch.setattr(candidates, "worth", ended)
    assert make(edgecs, tiny_gguf, tmp_path, *finish, "-q").code == 130
    assert (tmp_path / "work" / "head.pt").exists()
    assert not (tmp_path / "work" / "head-tvd.pt").exists()


@needs_torch
@pytest.mark.filterwarnings("ignore")
def test_a_drafter_learns_from_what_sessions_kept(
    edgecs: Edgecs, tiny_gguf: Path, tmp_path: Path
):
    made = make(edgecs, tiny_gguf, tmp_path, "--epochs", 0.1)
    assert made.code == 0, made.err
    log = tmp_path / "log"
    said = ("generate", "-m", tiny_gguf, "-c", 512, "-n", 40, "-q", "-s", 1)
    for text in ("hello", "what"):
        plain = edgecs(*said, "-p", text, "--no-spec").out
        drafter = ("--draft", tmp_path / "made", "--k-matrix", "3,2;0,0")
        kept = edgecs(*said, "-p", text, *drafter, "--log-answers", log)
        assert kept.out == plain
    first, second = read_samples(log)
    assert 1 < second.size < first.size == 40  # the second one came to its end
    assert first.number != second.number
    table = TargetFile(tiny_gguf).table(np.arange(272))
    logits = first.states.astype(np.float32) @ table.T
    picked = np.take_along_axis(logits, first.top_ids[1:], axis=1)
    assert np.allclose(picked, first.top_logits[1:].astype(np.float32), atol=0.3)

    work = ("--work", tmp_path / "work", "-o", tmp_path / "better", "--json")
    sizes = ("--tokens", 1000, "--answer", 16, "--parallel", 8, "--rows", 120)
    fixed = ("distill", "-m", tiny_gguf, "-c", 256, *sizes, *work)
    outcome = edgecs(*fixed, "--resume-from-log", log, "--epochs", 1)
    assert outcome.code == 0, outcome.err
    manifest = read_drafter(tmp_path / "better")
    assert manifest.made is not None
    assert manifest.made["prompts"] == "sessions"
    assert manifest.made["tokens"] == first.size + second.size
    before, after = (
        (tmp_path / name / "head.onnx").read_bytes() for name in ("made", "better")
    )
    assert before != after
    empty = tmp_path / "empty"
    empty.mkdir()
    other = ("--work", tmp_path / "work", "-o", tmp_path / "third")
    nothing = edgecs(*fixed[:-5], *other, "-q", "--resume-from-log", empty)
    one_line(nothing, 2, "has no answers: store some with")


def test_distill_needs_its_extra(
    edgecs: Edgecs, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch
):
    module = import_module(
        "edgecs_cli.commands.distill"
    )  # `edgecs_cli.commands.distill` is a command too
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    outcome = edgecs("distill", "-m", tiny_gguf, "-o", "out")
    one_line(outcome, 2, "needs torch", 'pip install "edgecs[distill]"')


def test_what_is_no_model_is_refused(tmp_path: Path):
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUF" + b"\0" * 100)
    with pytest.raises(ModelError, match="cannot be read as a GGUF"):
        TargetFile(path)
