"""Drafters that are models draft in every slot, and change no answer."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecs.decoding.kmatrix import KMatrix
from edgecs.engines.llama.heads.eagle3 import Eagle3
from edgecs.engines.llama.language_model import LlamaLM
from edgecs.engines.llama.model import LlamaModel
from edgecs.engines.load_options import LoadOptions
from edgecs.errors import ModelError
from edgecs.runtime.loader import LoadedDrafter, load, load_drafter
from edgecs.runtime.slot_drafters import SlotDrafters
from tests import drafter_files as files
from tests.server.servers import WAIT, serving
from tests.server.test_same_ids import Both, Wish, both, check, ids_of, parties

OPTIONS = LoadOptions(n_ctx=512, n_batch=64, threads=1, n_gpu_layers=0)
SLOTS = 4


class Made(NamedTuple):
    """A target, and the files of its drafters."""

    target: Path
    drafts: tuple[str, ...]


def head_made(folder: Path) -> Made:
    """A target that continues a cycle, and an EAGLE-3 head that is always right."""
    target = files.target(folder / "target.gguf", fixed=files.bigram)
    head = files.eagle3(
        folder / "head.gguf", fixed=files.by_token, changes=files.BY_TOKEN
    )
    return Made(target, (str(head),))


def small_made(folder: Path) -> Made:
    """The same target, and another model that says the same."""
    target = files.target(folder / "target.gguf", fixed=files.bigram)
    small = files.target(folder / "small.gguf", fixed=files.bigram, layers=1)
    return Made(target, (str(small),))


def dflash_made(folder: Path) -> Made:
    """A target that repeats a token, and a DFlash drafter that says so."""
    target = files.target(folder / "repeating.gguf", fixed=files.repeating)
    drafter = files.dflash(
        folder / "block.gguf", fixed=files.by_features, changes=files.BY_FEATURES
    )
    return Made(target, (str(drafter),))


def own_head_made(folder: Path) -> Made:
    """A target with an MTP head in its file."""
    target = files.with_heads(folder / "mtp.gguf", fixed=files.mtp_by_token)
    return Made(target, ("head",))


KINDS = {
    "eagle3": head_made,
    "gguf": small_made,
    "dflash": dflash_made,
    "mtp": own_head_made,
}
MATRIX = KMatrix.parse("3,1;0,1")
PROMPTS = ("abc", "The second one.", "x", "Something else", "12345", "zyx wv")


def complete(http: httpx.Client, prompt: str, **more: Any) -> dict[str, Any]:
    body = {"prompt": prompt, "max_tokens": 24, "temperature": 0, **more}
    body["token_details"] = True
    reply = http.post("/v1/completions", json=body)
    assert reply.status_code == 200, reply.text
    found: dict[str, Any] = reply.json()
    return found


@pytest.fixture(params=KINDS)
def made(tmp_path: Path, request: pytest.FixtureRequest) -> Made:
    return KINDS[request.param](tmp_path)


@pytest.mark.parametrize("together", [1, 6])
def test_every_slot_drafts_and_is_right(made: Made, tmp_path: Path, together: int):
    """Right drafts need the states and the cells of the slot's own conversation."""
    with ExitStack() as closing:
        given_ = {"drafts": made.drafts, "matrix": MATRIX, "options": OPTIONS}
        url = closing.enter_context(
            serving(made.target, tmp_path / "cache", slots=SLOTS, **given_)
        )
        http = closing.enter_context(httpx.Client(base_url=url, timeout=WAIT))
        pool = closing.enter_context(ThreadPoolExecutor(together))
        # Without a cache a request takes the least recently used slot.
        ask = list(itertools.islice(itertools.cycle(PROMPTS), 12))
        found = [*pool.map(lambda one: complete(http, one, cache_prompt=False), ask)]
        plain = [complete(http, one, speculative=False) for one in PROMPTS]
    name, drafted_ = Path(made.drafts[0]).stem, 0
    for prompt, answer in zip(ask, found, strict=True):
        assert ids_of(answer) == ids_of(plain[PROMPTS.index(prompt)])
        speculative = answer["speculative"]
        assert name in speculative["chain"]
        level = speculative["by_level"].get(name)
        # In joint calls a fixed schedule drafts nothing.
        assert level or together > 1, speculative
        if level:
            assert level["accepted"] >= 6 or together > 1, speculative
            # A DFlash drafter first says what most tokens of the prompt are.
            is_block = made.target.name == "repeating.gguf"
            assert is_block or level["accepted"] == level["tested"], speculative
            drafted_ += level["tested"]
    assert drafted_


@contextmanager
def drafted(made: Made, folder: Path, matrix: KMatrix | None) -> Iterator[Both]:
    options = LoadOptions(n_ctx=512, n_batch=64, threads=1, n_gpu_layers=0)
    with both(made.target, folder, options, drafts=made.drafts, matrix=matrix) as one:
        yield one


@pytest.fixture(
    scope="module", params=["eagle3 fixed", "gguf fixed", "gguf planned", "mtp planned"]
)
def random_both(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Both]:
    """Random weights: most drafts are wrong."""
    folder = tmp_path_factory.mktemp("random")
    kind, how = request.param.split()
    target = files.target(folder / "target.gguf", seed=3)
    if kind == "mtp":
        target = files.with_heads(folder / "mtp.gguf", seed=3)
        drafts: tuple[str, ...] = ("head",)
    elif kind == "gguf":
        drafts = (str(files.target(folder / "small.gguf", layers=1, seed=3)),)
    else:
        drafts = (str(files.eagle3(folder / "head.gguf")),)
    made = Made(target, drafts)
    matrix = MATRIX if how == "fixed" else None
    with drafted(made, folder / "cache", matrix) as one:
        yield one


@given(parties, st.sampled_from([1, 4]))
@settings(max_examples=6)
def test_ids_are_those_of_generate(
    random_both: Both, wishes: list[Wish], together: int
):
    check(random_both, wishes, together)


@pytest.mark.faults
@pytest.mark.parametrize("kind", ["eagle3", "gguf"])
def test_a_drafter_that_raises_in_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
):
    """The answer goes on plainly in that slot; the other slots go on drafting.

    In joint calls a fixed schedule drafts nothing, so how often a drafter is asked
    for answers at once depends on the time. The second answers come one by one.
    """
    made = KINDS[kind](tmp_path)
    kind_of = Eagle3 if kind == "eagle3" else LlamaLM
    score, calls = kind_of.score, [0]

    def failing(self: Any, requests: Any) -> Any:
        if isinstance(self, LlamaLM) and self.exact:
            return score(self, requests)
        calls[0] += 1
        if calls[0] == 5:
            raise RuntimeError("a defect")
        return score(self, requests)

    given_ = {"drafts": made.drafts, "matrix": MATRIX, "options": OPTIONS}
    with (
        serving(made.target, tmp_path / "cache", slots=2, **given_) as url,
        httpx.Client(base_url=url, timeout=WAIT) as http,
        ThreadPoolExecutor(2) as pool,
    ):
        plain = [complete(http, one, speculative=False) for one in PROMPTS]
        monkeypatch.setattr(kind_of, "score", failing)
        ask = lambda one: complete(http, one, cache_prompt=False)  # noqa: E731
        first = [*pool.map(ask, PROMPTS)]
        second = [*map(ask, PROMPTS)]
        counts = http.get("/metrics").text
    for answers in first, second:
        assert [*map(ids_of, answers)] == [*map(ids_of, plain)]
    assert 'edgecs:drafter_faults_total{model="tiny"} 1.0\n' in counts
    name = Path(made.drafts[0]).stem
    tested = [one["speculative"]["by_level"].get(name) for one in second]
    assert any(level and level["tested"] for level in tested)
    assert calls[0] > 5


@pytest.mark.parametrize("together", [1, 4])
def test_drafters_with_a_short_context_draft_in_all_slots(
    tmp_path: Path, together: int
):
    """The excerpts of conversations are apart, as their cells are."""
    made = small_made(tmp_path)
    prompts = [text * 30 for text in PROMPTS]
    short = replace(OPTIONS, n_ctx=48)
    given_ = {"drafts": made.drafts, "options": OPTIONS, "draft_options": short}
    matrix = MATRIX if together == 1 else None
    with (
        serving(
            made.target, tmp_path / "cache", slots=SLOTS, matrix=matrix, **given_
        ) as url,
        httpx.Client(base_url=url, timeout=WAIT) as http,
        ThreadPoolExecutor(together) as pool,
    ):
        ask = lambda one: complete(http, one, cache_prompt=False)  # noqa: E731
        found = [*pool.map(ask, prompts)]
        plain = [complete(http, one, speculative=False) for one in prompts]
    assert [*map(ids_of, found)] == [*map(ids_of, plain)]
    if together == 1:
        for answer in found:
            level = answer["speculative"]["by_level"]["small"]
            assert level["accepted"] == level["tested"] >= 6


class TestPlacing:
    @pytest.fixture
    def opened(self, tmp_path: Path) -> Iterator[tuple[Any, Made]]:
        made = head_made(tmp_path)
        options = LoadOptions(**{**vars(OPTIONS), "sequences": SLOTS})
        with load(made.target, options) as loaded:
            yield loaded, made

    def placed(self, opened: Any, closing: ExitStack) -> SlotDrafters:
        loaded, made = opened
        options = loaded.options
        drafter = closing.enter_context(
            load_drafter(Path(made.drafts[0]), loaded, options)
        )
        more = closing.enter_context(ExitStack())
        return SlotDrafters([drafter], SLOTS, more)

    def test_each_slot_has_cells_of_its_own(self, opened: Any):
        with ExitStack() as closing:
            placed = self.placed(opened, closing)
            models = [placed.of(slot)[0].model for slot in range(SLOTS)]
            assert len({*map(id, models)}) == SLOTS
            assert len({id(model.model) for model in models}) == 1  # type: ignore[attr-defined]
            size = placed.of(0)[0].size
            assert size > 512 * 2 * files.KV_HEADS * files.HEAD * 2
            assert placed.about == (
                f"head drafts in all slots, {size / (1 << 20):.1f} MiB for each"
            )

    def test_as_many_slots_as_fit(self, opened: Any, monkeypatch):
        with ExitStack() as closing:
            size = self.placed(opened, closing).of(0)[0].size
        free = psutil.virtual_memory()
        room = (1 << 30) + 3 * size + size // 2
        monkeypatch.setattr(
            psutil, "virtual_memory", lambda: free._replace(available=room)
        )
        with ExitStack() as closing:
            placed = self.placed(opened, closing)
            assert [len(placed.of(slot)) for slot in range(SLOTS)] == [1, 1, 1, 0]
            assert placed.about.startswith(
                "head drafts in slots 0 to 2 only, as memory is short ("
            )

    def test_one_that_cannot_be_opened_again_stays_in_slot_0(self, opened: Any):
        def refused(sequence: int) -> Any:
            raise ModelError("it has no room")

        loaded, _ = opened
        drafter = LoadedDrafter(
            "one", loaded.target, "", None, lambda: None, beside=refused
        )
        with ExitStack() as closing:
            placed = SlotDrafters([drafter], SLOTS, closing)
        assert "one drafts in slot 0 only, as it has no room" in placed.about
        assert [len(placed.of(slot)) for slot in range(SLOTS)] == [1, 0, 0, 0]

    def test_a_single_slot_has_nothing_to_say(self, opened: Any):
        loaded, _ = opened
        drafter = LoadedDrafter("one", loaded.target, "", None, lambda: None)
        assert SlotDrafters([drafter], 1, ExitStack()).about == ""

    def test_a_model_whose_sequences_do_not_fit_has_one(
        self, tmp_path: Path, opened: Any, monkeypatch
    ):
        small = files.target(tmp_path / "small.gguf", layers=1)
        fits = LlamaModel.kv_fits

        def few(self: LlamaModel, n_ctx: int, options: LoadOptions) -> bool:
            return options.sequences == 1 and fits(self, n_ctx, options)

        monkeypatch.setattr(LlamaModel, "kv_fits", few)
        loaded, _ = opened
        with ExitStack() as closing:
            drafter = closing.enter_context(load_drafter(small, loaded, loaded.options))
            assert drafter.model.sequences == 1
            placed = SlotDrafters([drafter], SLOTS, closing)
        assert "small drafts in slot 0 only, as memory is short" in placed.about
