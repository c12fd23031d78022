"""Layers on a GPU: the tokens of plain decoding, whatever drafts and wherever.

`make vulkan` runs this where llama.cpp finds a device, which may be a software one.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecs.core.context import Context
from edgecs.core.draft import Draft, score_one
from edgecs.decoding.cascade import stack
from edgecs.decoding.kmatrix import KMatrix
from edgecs.drafters.maxgram import MaxGram
from edgecs.engines.llama import library
from edgecs.engines.load_options import GpuLayers, LoadOptions
from edgecs.runtime.loader import OWN_HEAD, Loaded, load, load_drafter
from edgecs.sampling.settings import Sampling
from tests import drafter_files as files
from tests import families
from tests.commands import Edgecs, one_line

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not library.supports_offload(), reason="llama.cpp finds no GPU"),
]

OPTIONS = LoadOptions(n_ctx=256, n_batch=64, max_draft=15, threads=1)
GREEDY, WARM = Sampling(temperature=0), Sampling(temperature=0.8, seed=3)
LAYERS: list[GpuLayers] = ["all", 2]
CYCLE = [int(token) for token in files.CYCLE]
Made = Callable[[Path], tuple[Path, Path]]


def sibling(folder: Path) -> tuple[Path, Path]:
    target = files.target(folder / "target.gguf", "llama", fixed=files.bigram)
    small = folder / "small.gguf"
    return target, files.target(small, "llama", layers=2, fixed=files.bigram)


def eagle3_by_token(folder: Path) -> tuple[Path, Path]:
    target = files.target(folder / "target.gguf", "llama", fixed=files.bigram)
    head = folder / "head.gguf"
    return target, files.eagle3(head, fixed=files.by_token, changes=files.BY_TOKEN)


def eagle3_by_state(folder: Path) -> tuple[Path, Path]:
    target = files.target(folder / "target.gguf", "llama", fixed=files.bigram)
    return target, files.eagle3(folder / "head.gguf", own=True, fixed=files.by_state)


def mtp_by_token(folder: Path) -> tuple[Path, Path]:
    path = folder / "target.gguf"
    return files.with_heads(path, heads=2, fixed=files.mtp_by_token), OWN_HEAD


def mtp_by_state(folder: Path) -> tuple[Path, Path]:
    path = folder / "target.gguf"
    files.with_heads(path, fixed=files.mtp_by_state, own_output=True)
    return path, OWN_HEAD


def assistant_by_token(folder: Path) -> tuple[Path, Path]:
    target = files.gemma4(folder / "target.gguf", fixed=files.bigram)
    return target, files.assistant(folder / "head.gguf", fixed=files.assistant_by_token)


def assistant_by_state(folder: Path) -> tuple[Path, Path]:
    target = files.gemma4(folder / "target.gguf", fixed=files.bigram)
    return target, files.assistant(folder / "head.gguf", fixed=files.assistant_by_state)


# Drafters that are right if they get the right tokens or states, and the tokens of a
# draft that this holds for.
RIGHT: dict[str, tuple[Made, int]] = {
    "sibling": (sibling, 6),
    "EAGLE-3, tokens": (eagle3_by_token, 6),
    "EAGLE-3, states": (eagle3_by_state, 1),
    "MTP, tokens": (mtp_by_token, 6),
    "MTP, states": (mtp_by_state, 1),
    "assistant, tokens": (assistant_by_token, 6),
    "assistant, states": (assistant_by_state, 1),
}


@pytest.mark.parametrize("theirs", ["all", 0])
@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("kind", RIGHT)
def test_a_drafter_that_is_wired_is_right(
    tmp_path: Path, kind: str, layers: GpuLayers, theirs: GpuLayers
):
    """What it reads of the target, and what it computes, are where they should be."""
    made, depth = RIGHT[kind]
    path, drafter_path = made(tmp_path)
    options = replace(OPTIONS, n_gpu_layers=layers)
    with (
        load(path, options) as target,
        load_drafter(
            drafter_path, target, replace(OPTIONS, n_gpu_layers=theirs)
        ) as drafter,
    ):
        if layers == "all":
            assert target.model.offload.layers == target.model.offload.total
        else:
            assert target.model.offload.layers == layers
        matrix = KMatrix.parse(f"{depth},0;0,0")
        chain = stack([drafter.named], MaxGram(), matrix)
        rule = target.rule(GREEDY)
        with target.session(chain, matrix.counts(0), rule=rule) as session:
            answer = [t.id for t in session.generate(CYCLE[:20], max_tokens=100)]
            assert answer == CYCLE[20:120]
            assert not session.stats.faults
            found = session.stats.by_source()[drafter.name]
    assert found["tested"] > 40
    assert found["accepted"] >= 0.95 * found["tested"]


def report(edgecs: Edgecs, model: Path, *options: object) -> dict[str, Any]:
    fixed = ("-c", 512, "-p", "hello, hello", "-n", 40, "--json", "-q")
    outcome = edgecs("generate", "-m", model, *fixed, *options)
    assert outcome.code == 0, outcome.err
    found: dict[str, Any] = json.loads(outcome.out)
    return found


def random_eagle3(folder: Path) -> tuple[Path, Path]:
    target = files.target(folder / "target.gguf", "llama")
    return target, files.eagle3(folder / "head.gguf")


def random_sibling(folder: Path) -> tuple[Path, Path]:
    target = files.target(folder / "target.gguf", "llama")
    return target, files.target(folder / "small.gguf", "llama", seed=9)


def random_mtp(folder: Path) -> tuple[Path, Path]:
    return files.with_heads(folder / "target.gguf"), Path("head")


def no_model(folder: Path) -> tuple[Path, Path]:
    return files.target(folder / "target.gguf", "llama"), Path("none")


RANDOM: dict[str, Made] = {
    "Max-Gram": no_model,
    "sibling": random_sibling,
    "EAGLE-3": random_eagle3,
    "MTP": random_mtp,
}


@pytest.mark.parametrize("sampling", [("--temp", 0), ("--temp", 0.8, "-s", 7)])
@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("kind", RANDOM)
def test_the_strict_tier_has_the_tokens_of_plain_decoding(
    edgecs: Edgecs,
    tmp_path: Path,
    kind: str,
    layers: GpuLayers,
    sampling: tuple[object, ...],
):
    """With random weights, whose choices are close."""
    path, drafter = RANDOM[kind](tmp_path)
    place = ("-ngl", layers, *sampling)
    plain = report(edgecs, path, *place, "--no-spec")
    strict = report(edgecs, path, *place, "--draft", drafter, "--exact", "strict")
    assert strict["tokens"] == plain["tokens"]
    assert not strict["speculative"]["faults"]


@pytest.mark.parametrize("exact", ["auto", "strict", "numeric"])
@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("kind", RIGHT)
def test_every_tier_has_them_where_no_choice_is_close(
    edgecs: Edgecs, tmp_path: Path, kind: str, layers: GpuLayers, exact: str
):
    path, drafter = RIGHT[kind][0](tmp_path)
    place = ("-ngl", layers, "--temp", 0)
    plain = report(edgecs, path, *place, "--no-spec")
    given = ("--draft", "head" if drafter == OWN_HEAD else drafter)
    drafted = report(edgecs, path, *place, *given, "--exact", exact)
    assert drafted["tokens"] == plain["tokens"]
    assert not drafted["speculative"]["faults"]


FAMILIES: dict[str, Callable[[Path], Path]] = {
    "llama": lambda path: files.target(path, "llama"),
    "windowed": files.gemma4,
    "recurrent": families.qwen35,
}


@pytest.mark.parametrize("cells", ["f16", "q8_0"])
@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_are_nearly_those_of_the_cpu(
    tmp_path: Path, family: str, layers: GpuLayers, cells: Any
):
    """After a long prompt, a rejected draft, and cells that were put back."""
    path = FAMILIES[family](tmp_path / "model.gguf")
    tokens = np.random.default_rng(1).integers(0, 250, 150).astype(np.int32)
    options = replace(OPTIONS, type_k=cells, type_v=cells, kernels="llama")

    def rows(loaded: Loaded) -> list[Any]:
        target, found = loaded.target, list[Any]()
        context = Context(tokens)
        for width in (0, 3, 0, 7):
            draft = Draft.chain([9] * width, "test")
            found.append(score_one(target, context, draft).logits[:1].copy())
            context.append([5])
        kept = target.snapshot()
        target.reset()
        if kept is not None:
            assert target.restore(kept)
        found.append(score_one(target, context).logits.copy())
        return found

    with load(path, replace(options, n_gpu_layers=0)) as loaded:
        assert not loaded.model.offload.layers
        expected = rows(loaded)
    with load(path, replace(options, n_gpu_layers=layers)) as loaded:
        assert loaded.model.offload.layers
        buffers = loaded.model.offload.buffers
        assert any(not name.startswith("CPU") for name in buffers), buffers
        for row, other in zip(rows(loaded), expected, strict=True):
            assert np.isfinite(row).all()
            assert np.abs(row - other).max() < 0.05 * other.std()


def test_conversations_share_calls(tmp_path: Path):
    """Cells of several sequences on the device, and a copied prefix."""
    path = files.target(tmp_path / "target.gguf", "llama", fixed=files.bigram)
    options = replace(OPTIONS, n_gpu_layers="all", sequences=3)
    with load(path, options) as loaded:
        rule = loaded.rule(WARM)
        for sequence in range(3):
            prompt = CYCLE[sequence : sequence + 20]
            with loaded.session(rule=rule, sequence=sequence) as session:
                found = itertools.islice(session.generate(prompt), 30)
                ids = [token.id for token in found]
            assert ids == CYCLE[sequence + 20 : sequence + 50]
        assert loaded.target.copy(0, 1, 20)
        with loaded.session(rule=rule, sequence=1) as session:
            found = itertools.islice(session.generate(CYCLE[:20]), 30)
            assert [token.id for token in found] == CYCLE[20:50]


def test_a_context_is_limited_by_the_devices_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = files.target(tmp_path / "target.gguf", "llama", n_ctx=1 << 20)
    with load(path, replace(OPTIONS, n_gpu_layers="all")) as loaded:
        free = [replace(device, free=64 << 20) for device in library.devices()]
        monkeypatch.setattr(library, "devices", lambda: free)
        few = loaded.model.default_ctx(LoadOptions())
        monkeypatch.setattr(library, "devices", list)
        assert few > loaded.model.default_ctx(LoadOptions())


def test_the_cpu_alone_computes_without_layers_on_the_device(tmp_path: Path):
    """Long batches are not sent to a device that was not asked for."""
    path = files.target(tmp_path / "target.gguf", "llama")
    with load(path, replace(OPTIONS, n_gpu_layers=0, kernels="llama")) as loaded:
        library.clear_log()
        score_one(loaded.target, Context([7] * 200))
        buffers = loaded.model.offload.buffers
        assert all(name.startswith("CPU") for name in buffers), buffers


def test_our_kernels_are_refused_with_layers_on_the_device(
    edgecs: Edgecs, tmp_path: Path
):
    path = files.target(tmp_path / "target.gguf", "llama")
    fixed = ("-m", path, "-p", "x", "-n", 2, "--kernels", "own")
    one_line(edgecs("generate", *fixed, "-ngl", "all"), 2, "layers are on the GPU")


def test_what_is_told_of_the_device(edgecs: Edgecs, tmp_path: Path):
    path = files.target(tmp_path / "target.gguf", "llama")
    (device, *_) = library.devices()
    doctor = json.loads(edgecs("doctor", "--json").out)
    assert device.description in doctor["llama.cpp"]["devices"][0]
    fixed = ("-m", path, "-p", "x", "-n", 2, "-c", 128)
    every = edgecs("generate", *fixed, "-ngl", "all").err
    some = edgecs("generate", *fixed, "-ngl", 2).err
    chosen = edgecs("generate", *fixed, "-v").err
    if device.software:
        assert " · software GPU · " in every
        assert " · software GPU, 2 of 5 layers, CPU, " in some
        assert f"offload: no layers, as {device.description} computes" in chosen
        assert " · CPU, " in chosen
    else:
        assert " · GPU · " in every
        assert " · GPU, 2 of 5 layers, CPU, " in some
        assert "offload: 5 of 5 layers fit" in chosen


def test_an_audit_holds_there(edgecs: Edgecs, tmp_path: Path):
    path = files.target(tmp_path / "target.gguf", "llama")
    fixed = ("-m", path, "-ngl", "all", "-c", 512, "-n", 24, "--json")
    outcome = edgecs("audit", *fixed)
    assert outcome.code == 0, outcome.err
