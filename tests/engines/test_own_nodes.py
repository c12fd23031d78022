"""edgecs's kernels inside llama.cpp: what a model computes with them.

A row of logits must depend on the tokens before it alone: not on how many tokens were
computed in the call, on how a prompt was cut into calls, on the number of threads, or
on what was in the cache before.
"""

from __future__ import annotations

import gc
import hashlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edgecs.core.context import Context
from edgecs.core.draft import Draft, score_one
from edgecs.engines.llama.kernels import Counts, KernelSet, kernel_sets
from edgecs.engines.llama.language_model import LlamaLM
from edgecs.engines.llama.model import LlamaModel
from edgecs.engines.load_options import LoadOptions
from edgecs.testing.fakes import write_random_gguf
from tests.architectures import ARCHITECTURES
from tests.native_library import library

Rows = NDArray[np.float32]
OPTIONS = LoadOptions(n_ctx=1024, n_batch=512, threads=2, n_gpu_layers=0)
SETS = {one.name: one for one in kernel_sets(library())}
WIDEST = 17  # more than any kernel computes at once, and than threads share
BEST = next(iter(SETS.values()))


@contextmanager
def opened(
    path: Path, kernels: KernelSet | None = BEST, options: LoadOptions = OPTIONS
) -> Iterator[LlamaLM]:
    cancel = threading.Event()
    model = LlamaModel(path, options, cancel, kernels)
    try:
        target = LlamaLM(model, options, cancel)
        yield target
        target.close()
    finally:
        model.close()


def ids(count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, 256, count).tolist()


def together(target: LlamaLM, prompt: Sequence[int], more: Sequence[int]) -> Rows:
    """Rows of one call, after a prompt that is in the cache already."""
    context = Context(prompt)
    score_one(target, context)
    context.append(more[:1])
    draft = Draft.chain(np.array(more[1:], dtype=np.int32), "")
    return np.array(score_one(target, context, draft).logits)


def one_by_one(target: LlamaLM, prompt: Sequence[int], more: Sequence[int]) -> Rows:
    context, rows = Context(prompt), []
    score_one(target, context)
    for token in more:
        context.append([token])
        rows.append(np.array(score_one(target, context).logits[0]))
    return np.stack(rows)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    made = {
        kind: write_random_gguf(folder / f"{kind}.gguf", kind=kind)
        for kind in ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "BF16", "F16", "F32")
    }
    return made | {
        name: write(folder / f"{name}.gguf") for name, write in ARCHITECTURES.items()
    }


@pytest.fixture(scope="module")
def wide_heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Heads of 32 numbers, which is a block of Q8_0."""
    folder = tmp_path_factory.mktemp("models")
    return write_random_gguf(folder / "wide.gguf", heads=2, kv_heads=1, kind="Q4_0")


@pytest.mark.parametrize("kernels", SETS.values(), ids=SETS)
@pytest.mark.parametrize(
    "name",
    ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "BF16", "F16", "F32", *ARCHITECTURES],
)
def test_a_row_does_not_depend_on_the_width(models, name: str, kernels: KernelSet):
    prompt, more = ids(250), ids(WIDEST, seed=1)
    with opened(models[name], kernels) as target:
        alone = one_by_one(target, prompt, more)
        for width in (2, 3, 4, 7, 8, 12, 13, 16, WIDEST):
            rows = together(target, prompt, more[:width])
            assert rows.tobytes() == alone[:width].tobytes(), width
        assert target._nodes
        assert target._nodes.counts.left == 0


@pytest.mark.parametrize("name", ["Q8_0", "Q4_1", "F16", *ARCHITECTURES])
def test_logits_are_close_to_those_of_llama_cpp(models, name: str):
    prompt, more = ids(300), ids(8, seed=1)
    with opened(models[name]) as target:
        ours = together(target, prompt, more)
    with opened(models[name], None, replace(OPTIONS, repack=False)) as target:
        theirs = together(target, prompt, more)
    spread = theirs.std()
    assert np.abs(ours - theirs).max() < 0.1 * spread
    assert np.abs(ours - theirs).mean() < 0.02 * spread


@pytest.mark.parametrize("type_", ["f32", "f16", "bf16", "q8_0"])
@pytest.mark.parametrize("depth", [40, 250, 505, 700])
def test_every_cache_at_every_depth(wide_heads: Path, type_: str, depth: int):
    options = replace(OPTIONS, type_k=type_, type_v=type_)
    prompt, more = ids(depth), ids(WIDEST, seed=1)
    with opened(wide_heads, options=options) as target:
        alone = one_by_one(target, prompt, more)
        assert together(target, prompt, more).tobytes() == alone.tobytes()


@pytest.mark.parametrize("name", ["Q4_0", "experts", "sinks"])
def test_an_answer_does_not_depend_on_how_its_prompt_was_cut(models, name: str):
    prompt, more = ids(600), ids(3, seed=1)
    expected = None
    for chunk in (512, 64, 37, 5):
        options = replace(OPTIONS, n_batch=chunk, max_draft=3, swa_full=True)
        with opened(models[name], options=options) as target:
            rows = together(target, prompt, more)
        expected = rows if expected is None else expected
        assert rows.tobytes() == expected.tobytes(), chunk


def test_an_answer_does_not_depend_on_what_was_cached_before(models):
    prompt, more = ids(600), ids(3, seed=1)
    with opened(models["Q4_0"]) as target:
        expected = together(target, prompt, more)
        for kept in (599, 513, 300, 1):
            target.reset()
            other = [*prompt[:kept], *ids(50, seed=2)]
            score_one(target, Context(other))
            target.end_turn(Context(other))
            assert score_one(target, Context(prompt)).fed == 600 - kept
            assert together(target, prompt, more).tobytes() == expected.tobytes(), kept


@pytest.mark.parametrize("name", ["Q4_0", "experts"])
def test_an_answer_does_not_depend_on_the_number_of_threads(models, name: str):
    prompt, more = ids(300), ids(5, seed=1)
    expected = None
    for threads in (1, 2, 3, 4):
        options = replace(OPTIONS, threads=threads)
        with opened(models[name], options=options) as target:
            rows = [one_by_one(target, prompt, more), together(target, prompt, more)]
        expected = rows[0] if expected is None else expected
        assert rows[0].tobytes() == rows[1].tobytes() == expected.tobytes(), threads


def test_two_contexts_share_the_packed_weights(models):
    prompt, more = ids(80), ids(4, seed=1)
    cancel = threading.Event()
    model = LlamaModel(models["Q4_0"], OPTIONS, cancel, BEST)
    assert model.packed
    first = LlamaLM(model, OPTIONS, cancel)
    size = model.packed.size
    second = LlamaLM(model, replace(OPTIONS, n_ctx=256), cancel)
    assert model.packed.size == size > 0
    expected = together(first, prompt, more)
    found: list[Rows] = []

    def compute(target: LlamaLM) -> None:
        for _ in range(5):
            target.reset()
            found.append(together(target, prompt, more))

    threads = [threading.Thread(target=compute, args=(t,)) for t in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 10
    assert all(rows.tobytes() == expected.tobytes() for rows in found)
    first.close()
    assert together(second, prompt, more).tobytes() == expected.tobytes()
    second.close()
    model.close()


ROUNDS = 20
ANSWER = (
    "import sys; sys.path[:] = sys.argv[2:]; "
    "from tests.engines.test_own_nodes import answer; answer(sys.argv[1])"
)


def answer(file: str) -> None:
    """In a child process: print digests of the rows of several calls."""
    prompt, more = ids(300), ids(8, seed=1)
    with opened(Path(file)) as target:
        print("begins", flush=True)
        for _ in range(ROUNDS):
            target.reset()
            print(hashlib.sha256(together(target, prompt, more).tobytes()).hexdigest())


def test_a_process_that_is_stopped_in_mid_call(models):
    """As by Ctrl-Z, many times, wherever its threads are."""
    with opened(models["Q4_0"]) as target:
        rows = together(target, ids(300), ids(8, seed=1))
    expected = hashlib.sha256(rows.tobytes()).hexdigest()
    command = [sys.executable, "-c", ANSWER, str(models["Q4_0"]), *sys.path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout
        try:
            assert child.stdout.readline() == "begins\n"
            while child.poll() is None:
                for number in (signal.SIGSTOP, signal.SIGCONT):
                    child.send_signal(number)
                    time.sleep(0.002)
        finally:
            child.kill()
        found = child.stdout.read().split()
    assert child.returncode == 0
    assert found == [expected] * ROUNDS


def test_what_no_kernel_takes_stays_with_llama_cpp(models):
    """Without flash attention scores are a product of no weights."""
    options = replace(OPTIONS, flash_attention="off")
    with opened(models["Q4_0"], options=options) as target:
        assert target._nodes
        counts = target._nodes.counts
        assert counts.attentions == 0
        assert counts.left == 4  # two products of each layer
        rows = together(target, ids(50), ids(4, seed=1))
        assert np.isfinite(rows).all()


def test_models_that_come_and_go(models):
    """The memory of one model is that of the next: nothing of it may be left."""
    expected = {}
    for _ in range(3):
        for name in ("Q4_0", "Q8_0"):
            with opened(models[name]) as target:
                rows = together(target, ids(40), ids(4, seed=1)).tobytes()
            assert expected.setdefault(name, rows) == rows
            gc.collect()


def test_a_vocabulary_that_is_no_multiple_of_a_group(tmp_path: Path):
    path = write_random_gguf(tmp_path / "odd.gguf", vocab_size=261, kind="Q8_0")
    with opened(path) as target, opened(path, None) as plain:
        ours = together(target, ids(30), ids(5, seed=1))
        theirs = together(plain, ids(30), ids(5, seed=1))
        assert ours.shape == (5, 261)
        assert np.abs(ours - theirs).max() < 0.1 * theirs.std()
        assert target._nodes
        assert target._nodes.counts.left == 0


def test_counts(models):
    with opened(models["Q4_0"]) as target:
        assert target._nodes
        assert target._nodes.counts == Counts(matrices=15, attentions=2, left=0)
