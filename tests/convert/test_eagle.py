"""EAGLE-3 drafters: what is trained is what llama.cpp computes from the file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from edgecs.core.context import Context
from edgecs.core.draft import score_one
from edgecs.engines.load_options import LoadOptions
from edgecs.engines.state_head import StateHead
from edgecs.errors import DistillError, ModelError
from edgecs.runtime.loader import Loaded, load
from edgecs_convert.distill.recipe import Recipe
from edgecs_convert.distill.samples import Sample, read_samples, write_shard
from edgecs_convert.distill.target import TargetFile
from edgecs_convert.distill.texts import (
    Vocabulary,
    batch,
    choose_vocabulary,
    windows,
)
from tests.commands import one_line
from tests.conftest import Outcome
from tests.convert.samples import Edgecs, needs_torch, sample
from tests.drafter_files import INNER, WIDTH, silent, target

OPTIONS = LoadOptions(n_ctx=512, n_batch=64, threads=1, n_gpu_layers=0)
LAYERS = (2, 3, 5)  # that the drafter of a target of six layers reads


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of six layers."""
    return target(tmp_path_factory.mktemp("eagle") / "deep.gguf", "llama", layers=6)


@pytest.fixture(scope="module")
def loaded(deep: Path) -> Iterator[Loaded]:
    with load(deep, OPTIONS) as found:
        yield found


def whole(number: int, start: int, size: int) -> Sample:
    """A sample with states of layers after all tokens but the last."""
    made, width = sample(number, start, size), len(LAYERS) * WIDTH
    random = np.random.default_rng(number)
    states = random.standard_normal((start + size - 1, width)).astype(np.float16)
    return made._replace(states=states)


def make(edgecs: Edgecs, model: Path, folder: Path, *options: object) -> Outcome:
    return edgecs(
        "distill",
        *("-m", model, "-c", 256, "--tokens", 1000, "--answer", 16, "--parallel", 8),
        *("--rows", 120, "--work", folder / "work", "-o", folder / "made"),
        *("--kind", "eagle3", *options),
    )


def test_states_of_all_tokens_are_kept_and_aligned(tmp_path: Path):
    """State i - 1 chose token i; the first token has none, and is left out."""
    few = [whole(1, 5, 9), whole(2, 3, 4)]
    write_shard(tmp_path, [few[0]])
    write_shard(tmp_path, [few[1]])
    back = [*read_samples(tmp_path)]
    assert [one.stated for one in back] == [0, 0]
    for one, again in zip(few, back, strict=True):
        assert np.array_equal(one.states, again.states)
    every = windows(back, 64, 64)
    assert [(one.begin, one.first, one.end) for one in every] == [(1, 5, 13), (1, 3, 6)]
    vocabulary = choose_vocabulary(back, 50, 50)
    found = batch(every, vocabulary, 64)
    assert found.ids.shape == (2, 12)  # as long as the longest one
    assert found.ids[0].tolist() == back[0].tokens[1:13].tolist()
    assert np.array_equal(found.states[0], back[0].states[:12].astype(np.float32))
    assert np.array_equal(found.next_states[0, 4:], back[0].states[5:13])


def test_answers_of_earlier_versions_are_read(tmp_path: Path):
    """Their heads have no number of states: there is one a token, but for the last."""
    path = write_shard(tmp_path, [sample(1, 5, 9), sample(2, 3, 4)])
    with np.load(path) as file:
        arrays = dict(file)
    arrays["heads"] = arrays["heads"][:, :3]
    np.savez(path, **arrays)
    back = [*read_samples(tmp_path)]
    assert [one.stated for one in back] == [5, 3]
    assert np.array_equal(back[1].states, sample(2, 3, 4).states)


@needs_torch
def test_llama_cpp_computes_what_was_trained(
    loaded: Loaded, deep: Path, tmp_path: Path
):
    """Rows of the first and of later passes, of every token in the vocabulary."""
    import torch

    from edgecs_convert.distill.eagle import Eagle
    from edgecs_convert.distill.eagle_file import write_eagle
    from edgecs_convert.distill.eagle_start import Begun, begin
    from edgecs_convert.distill.measure import opened_eagle

    file = TargetFile(deep)
    ids = np.sort(np.random.default_rng(3).permutation(272)[:96]).astype(np.int32)
    eagle = Eagle(file.eagle_shape(96), file.embeddings(), 5)
    begun = Begun(file.table(ids), file.norm(), file.last_layer(eagle.shape))
    begin(eagle, begun, [whole(7, 30, 30)], Vocabulary(ids, 272), Recipe())
    assert eagle.shape.layers == LAYERS
    path = tmp_path / "made.gguf"
    write_eagle(
        path, eagle.arrays(), eagle.shape, ids, file, kind="f16", name="x", license=""
    )
    said = np.random.default_rng(4).integers(0, 250, 24).astype(np.int32)
    states = whole(9, 12, 13).states.astype(np.float32)
    with torch.no_grad():
        steps = eagle(
            torch.from_numpy(said[None, 1:].astype(np.int64)),
            torch.from_numpy(states[None, :23]),
            3,
        )
        rows = [eagle.logits(step)[0].numpy() for step in steps]
    with opened_eagle(path, loaded) as (drafter, given):
        assert isinstance(drafter, StateHead)
        for known in 9, 17, 21:
            # Two tokens are drafted after the last state.
            context = Context(said[: known + 1])
            drafter.reset()
            given.put(context, 0, states[:known])
            for s in range(3):
                tail = said[known + 1 : known + 1 + s].tolist()
                found = score_one(drafter, context.with_tail(tail) if s else context)
                row, wanted = found.logits[0], rows[s][known - 1 + s]
                # The file has fewer bits; another pass or token correlates by 0.5.
                assert np.corrcoef(row[ids], wanted)[0, 1] > 0.995
                other = np.setdiff1d(np.arange(272), ids)
                assert np.isneginf(row[other]).all()


def test_it_begins_with_the_last_layer_of_its_target_where_that_fits(deep: Path):
    file = TargetFile(deep)
    tensors = {tensor.name: tensor.data for tensor in gguf.GGUFReader(deep).tensors}
    shape = replace(file.eagle_shape(8), inner=INNER)
    layer = file.last_layer(shape)
    assert set(layer) == {"inner_norm", "gate", "up", "down"}
    assert np.array_equal(layer["gate"], tensors["blk.5.ffn_gate.weight"].T)
    assert layer["down"].shape == shape.shapes()["down"]
    assert file.last_layer(replace(shape, inner=2 * INNER)) == {}


@needs_torch
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["q8_0", "q4_0"])
def test_from_a_model_to_a_file_and_its_answers(
    edgecs: Edgecs, deep: Path, tmp_path: Path, kind: str
):
    outcome = make(
        edgecs, deep, tmp_path, "--epochs", 0.3, "--quantize", kind, "--json"
    )
    assert outcome.code == 0, outcome.err
    report, path = json.loads(outcome.out), tmp_path / "made.gguf"
    assert report["path"] == str(path)
    reader = gguf.GGUFReader(path)
    field: Any = reader.get_field("edgecs.made")
    assert json.loads(field.contents())["agreement"] == report["agreement"]
    theirs: Any = reader.get_field("tokenizer.ggml.tokens")
    ours: Any = gguf.GGUFReader(deep).get_field("tokenizer.ggml.tokens")
    assert theirs.contents() == ours.contents()
    types = {t.name: t.tensor_type.name.lower() for t in reader.tensors}
    assert types["output.weight"] == kind
    fixed = ("-m", deep, "-c", 512, "-p", "hi", "-n", 40, "-q")
    for temperature in 0, 0.8:
        asked = (*fixed, "--temp", temperature, "-s", 3)
        plain = edgecs("generate", *asked, "--no-spec")
        matrix = ("--k-matrix", "2,0;0,0")
        drafted = edgecs("generate", *asked, "--draft", path, *matrix)
        assert drafted.code == 0, drafted.err
        assert drafted.out == plain.out
    one_line(make(edgecs, deep, tmp_path, "-q"), 2, "made.gguf exists already")


@needs_torch
@pytest.mark.filterwarnings("ignore")
def test_what_a_bigram_target_says_is_learned(edgecs: Edgecs, tmp_path: Path):
    """The next token is a function of the last one, so nothing else has to be known."""
    model = target(tmp_path / "bigram.gguf", "llama", layers=6, fixed=silent)
    more = ("--epochs", 8, "--rate", 3e-3, "--rows", 272, "--json")
    outcome = make(edgecs, model, tmp_path, *more)
    assert outcome.code == 0, outcome.err
    first, _, three = json.loads(outcome.out)["agreement"]
    assert first > 0.9
    assert three > 0.6


@needs_torch
@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--quantize", "int8"), "--quantize int8 is not a type of --kind eagle3"),
        (
            ("--kind", "head", "--quantize", "q4_0"),
            "--quantize q4_0 is not a type of --kind head: give int8 or none",
        ),
    ],
)
def test_types_that_a_kind_does_not_have(
    edgecs: Edgecs, deep: Path, tmp_path: Path, options: tuple[object, ...], says: str
):
    one_line(make(edgecs, deep, tmp_path, "-q", *options), 2, says)
    assert not (tmp_path / "work").exists()


@needs_torch
def test_answers_of_sessions_are_refused(edgecs: Edgecs, deep: Path, tmp_path: Path):
    """They have final states only."""
    write_shard(tmp_path / "log", [sample(1, 5, 9)])
    outcome = make(edgecs, deep, tmp_path, "-q", "--resume-from-log", tmp_path / "log")
    one_line(outcome, 2, "have no states of layers", "give --kind head")
    assert not (tmp_path / "work").exists()


def test_targets_that_none_can_be_made_for(tmp_path: Path):
    other = target(tmp_path / "other.gguf", "qwen2")
    with pytest.raises(
        ModelError, match="does not give the states of the layers of qw"
    ):
        TargetFile(other).eagle_shape(8)
    shallow = target(tmp_path / "shallow.gguf", "llama", layers=3)
    with pytest.raises(
        ModelError, match="it has 3 layers, and the drafter reads three"
    ):
        TargetFile(shallow).eagle_shape(8)


@needs_torch
def test_a_disk_that_is_full_leaves_no_file(
    deep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from edgecs_convert.distill.eagle import Eagle
    from edgecs_convert.distill.eagle_file import write_eagle

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    file = TargetFile(deep)
    eagle = Eagle(file.eagle_shape(8), file.embeddings())
    monkeypatch.setattr(gguf.GGUFWriter, "write_tensors_to_file", full)
    ids = np.arange(8, dtype=np.int32)
    with pytest.raises(DistillError, match=r"made.gguf cannot be written \(No space"):
        write_eagle(
            tmp_path / "made.gguf",
            eagle.arrays(),
            eagle.shape,
            ids,
            file,
            kind="f16",
            name="x",
            license="",
        )
    assert not [*tmp_path.iterdir()]
