"""Drafters that come with edgecs: used where their figures promise something."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecs.calibrate import speculation_profile
from edgecs.calibrate.bundled_drafters import (
    _speedup,
    all_bundled,
    bundled_for,
    expected_speedup,
)
from edgecs.calibrate.profile import Key, Profile, Profiles, fingerprint
from edgecs.calibrate.speculation_profile import SpeculationProfile, left_out
from edgecs.core.context import Context
from edgecs.core.draft import NOTHING, Draft, score_one
from edgecs.costs.cost_model import CostModel
from edgecs.decoding.cascade import NamedModel, stack
from edgecs.decoding.exactness import Classes
from edgecs.decoding.kmatrix import KMatrix
from edgecs.drafters.maxgram import MaxGram
from edgecs.errors import ModelError
from edgecs.hub.drafter_manifest import (
    DrafterManifest,
    parse_drafter,
    read_drafter,
    write_drafter,
)
from edgecs.hub.manifest import known_manifests
from edgecs.planning.acceptance import Calibration
from edgecs.runtime import builder
from edgecs.runtime.folders import Folders
from edgecs.runtime.loader import Loaded, load_drafter
from edgecs.runtime.recipe import Recipe
from edgecs.sampling.settings import Sampling
from edgecs.testing.fakes import TableModel
from edgecs.text.chat_template import ChatTemplate
from edgecs_convert.distill.target import TargetFile
from tests.conftest import Outcome
from tests.keys import KEY

MADE = {"agreement": [0.6, 0.4, 0.2], "ms_a_token": 1.0, "target_ms": 10.0}
FLAT = [10.0, 10.5, 11.0, 11.5]
MATRIX = KMatrix.parse("2,2;0,0")
STEEP = [10.0, 20.0, 30.0, 40.0]
NOTHING_EXPECTED = "as its expected speedup on this machine is 1.00x"


def drafter(folder: Path, made: dict | None) -> Path:
    folder.mkdir()
    manifest = DrafterManifest(
        name=folder.name,
        description="a head",
        license="MIT",
        file="head.onnx",
        kind="head",
        cache="rows",
        window=160,
        vocabulary="0" * 64,
        made=made,
        folder=folder,
    )
    write_drafter(manifest)
    return folder


def test_the_drafters_of_known_models_are_there_and_small():
    there = all_bundled()
    for manifest in known_manifests().values():
        if manifest.drafter:
            folder = there[manifest.drafter]
            about = read_drafter(folder)
            assert about.made
            assert about.license
            size = sum(file.stat().st_size for file in folder.iterdir())
            assert size <= 16 << 20


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        (FLAT, 2.0 / (11 + 2) * 10),
        (STEEP, 1.0),
        ([20.0, 21.0, 22.0, 23.0], 2.0 / (22 + 4) * 20),  # all of it half as fast
        ([10.0, float("inf"), float("inf"), 11.5], 2.2 / (11.5 + 3) * 10),
    ],
)
def test_a_promise_follows_the_times_here(
    tmp_path: Path, times: Sequence[float], expected: float
):
    folder = drafter(tmp_path / "head", MADE)
    assert expected_speedup(folder, times) == pytest.approx(expected)


def test_without_figures_nothing_is_promised(tmp_path: Path):
    assert expected_speedup(drafter(tmp_path / "head", None), FLAT) == 1.0


ABOUT = {
    "name": "d",
    "description": "",
    "license": "",
    "file": "head.onnx",
    "kind": "head",
    "cache": "rows",
    "window": 160,
    "vocabulary": "0" * 64,
}
figures = st.one_of(
    st.floats(), st.integers(), st.booleans(), st.text(max_size=2), st.just(10**400)
)


@given(shares=st.lists(figures, max_size=3) | figures, step=figures, single=figures)
def test_figures_of_any_kind_are_refused_or_promise_something_finite(
    shares: object, step: object, single: object
):
    made = {"agreement": shares, "ms_a_token": step, "target_ms": single}
    try:
        about = parse_drafter({**ABOUT, "made": made}, Path("here"))
    except ModelError:
        return
    assert 1 <= _speedup(about, FLAT) < len(FLAT) + 1
    assert about.right is None or 0 <= about.right <= 1


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("agreement", 0.5, "'agreement' must be a list of 64 entries at most, got 0.5"),
        ("agreement", [0.5] * 65, "'agreement' must be a list of 64 entries at most"),
        ("agreement", [0.5, 1.5], "'agreement' has an entry that must be 1 at most"),
        ("agreement", [-0.5], "'agreement' has an entry that must be 0 or more"),
        ("agreement", [True], "'agreement' has an entry that must be a number"),
        (
            "agreement",
            [float("nan")],
            "'agreement' has an entry that must be 1 at most",
        ),
        ("ms_a_token", 0, "'ms_a_token' must be 1e-06 ms or more, got 0"),
        ("ms_a_token", -1.0, "'ms_a_token' must be 1e-06 ms or more, got -1.0"),
        ("target_ms", math.inf, "'target_ms' must be 1000000000 ms at most"),
        ("target_ms", math.nan, "'target_ms' must be 1000000000 ms at most"),
        ("target_ms", "3", "'target_ms' must be a number, got '3'"),
    ],
)
def test_figures_that_cannot_be_are_named(key: str, value: object, sentence: str):
    with pytest.raises(ModelError) as error:
        parse_drafter({**ABOUT, "made": {**MADE, key: value}}, Path("here"))
    assert str(error.value).startswith(f"here/drafter.toml, [made]: {sentence}")


@pytest.mark.parametrize("key", [*ABOUT, "vocabulary_file", "id_map", "made", "size"])
@given(value=st.booleans() | st.floats() | st.integers(max_value=0) | st.lists(figures))
def test_wrong_types_in_a_drafters_manifest_are_refused(key: str, value: object):
    with pytest.raises(ModelError, match=f"'{key}' must be"):
        parse_drafter({**ABOUT, key: value}, Path("here"))


def test_what_a_gguf_says_of_itself_is_written_as_one_line(tmp_path: Path):
    folder = drafter(tmp_path / "head", MADE)
    said = "MIT\nAND \x1b[31mmore" + "x" * 300
    write_drafter(replace(read_drafter(folder), license=said, source="a\udcff.gguf"))
    about = read_drafter(folder)
    assert about.license.startswith("MIT?AND ?[31mmorexx")
    assert about.source == "a?.gguf"


def test_a_drafter_that_promises_nothing_is_left_out_and_said_so(
    edgecs: Callable[..., Outcome],
    tiny_gguf: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """It is not even opened: there is no graph in its folder."""
    slow = {**MADE, "ms_a_token": 1000.0}
    folder = drafter(tmp_path / "slow-head", slow)
    monkeypatch.setattr(builder, "bundled_for", lambda model: folder)
    fixed = ("generate", "-m", tiny_gguf, "-c", 512, "-p", "hi", "-n", 5, "-v")
    outcome = edgecs(*fixed)
    assert outcome.code == 0, outcome.err
    assert "drafter slow-head: left out, as its expected speedup" in outcome.err
    for option in (("--draft", "none"), ("--no-spec",), ("--k-matrix", "3")):
        assert "slow-head" not in edgecs(*fixed, *option).err


CHAINS = [["mag"], ["head", "mag"]]
WHEN = "2025-01-31T10:00:00+00:00"


def tuned_profile(folder: Path, chosen: Sequence[str], /, **changes: Any) -> Profile:
    """What a tuning has left that tried the drafter in `folder`."""
    costs = CostModel()
    costs.measured(0, dict(enumerate(FLAT, 1)))
    rows = [
        {"chain": chain, "mean": 1.5, "verdict": f"why not {chain[0]}"}
        for chain in CHAINS
    ]
    chain = {
        "tried": {fingerprint(folder): "head"},
        "chosen": chosen,
        "table": rows,
        **changes,
    }
    states = costs.state(), Classes().state(), Calibration().state()
    return Profile(KEY, *states, chain=chain, tuned=WHEN)


def judged(folder: Path, profile: Profile, key: Key = KEY) -> str | None:
    """Why the drafter in `folder` is left out where a profile was kept."""
    profiles = Profiles(folder.parent / "profiles")
    assert profiles.save(profile)
    return left_out(
        folder, SpeculationProfile(TableModel(50), key=key, profiles=profiles)
    )


@pytest.fixture
def head(tmp_path: Path) -> Path:
    """A drafter that promises twice the speed."""
    return drafter(tmp_path / "head", MADE)


@pytest.fixture
def slow_head(tmp_path: Path) -> Path:
    """A drafter that promises nothing."""
    return drafter(tmp_path / "slow", {**MADE, "ms_a_token": 1000.0})


@pytest.mark.parametrize("chosen", CHAINS)
def test_what_was_tuned_counts_more_than_a_promise(
    head: Path, slow_head: Path, chosen: list[str]
):
    for folder in (head, slow_head):
        why = judged(folder, tuned_profile(folder, chosen))
        if "head" in chosen:
            assert why is None
        else:
            assert why == "tuned on 2025-01-31: why not head"


def test_a_tuning_says_nothing_about_a_drafter_that_it_did_not_try(
    head: Path, slow_head: Path
):
    """A drafter of that name that was made again is another one, too."""
    assert judged(slow_head, tuned_profile(head, ["head"])) == NOTHING_EXPECTED
    assert judged(head, tuned_profile(slow_head, ["mag"])) is None


def test_a_stale_tuning_is_none(head: Path, slow_head: Path):
    other = replace(KEY, build="0.4")
    assert judged(slow_head, tuned_profile(slow_head, ["head"]), other)
    never = replace(tuned_profile(slow_head, ["head"]), tuned=None)
    assert judged(slow_head, never) == NOTHING_EXPECTED


@pytest.mark.parametrize(
    "changes",
    [
        {"chosen": 5},
        {"chosen": None},
        {"tried": []},
        {"tried": {}},
        {"table": 5},
        {"table": [5, {"chain": 3}, {}]},
    ],
)
def test_a_tuning_that_makes_no_sense_is_survived(head: Path, changes: dict[str, Any]):
    why = judged(head, tuned_profile(head, ["mag"], **changes))
    assert why == ("tuned on 2025-01-31: mag is chosen" if "table" in changes else None)


def test_without_times_nothing_is_expected(head: Path):
    assert (
        left_out(head, SpeculationProfile(TableModel(50))) == "as no call was timed yet"
    )


def test_a_shipped_drafter_has_a_name(
    tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = drafter(tmp_path / "head", MADE)
    monkeypatch.setattr(builder, "all_bundled", lambda: {"some-head": folder})
    folders = Folders(tmp_path, offline=True)
    recipe = Recipe(str(tiny_gguf), drafts=("some-head", str(folder)))
    assert builder.find_files(recipe, folders).drafts == (folder, folder)
    with pytest.raises(ModelError, match="other"):
        builder.find_files(Recipe(str(tiny_gguf), drafts=("other",)), folders)


def test_a_model_is_known_by_name_to_its_drafter():
    name = next(m.name for m in known_manifests().values() if m.drafter)
    assert bundled_for(name) in all_bundled().values()
    assert bundled_for("./some.gguf") is None


@pytest.mark.model
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_answers_are_the_same_with_the_drafter_of_the_default_model(
    smollm: Loaded, temperature: float
):
    rule = smollm.rule(Sampling(temperature, top_k=40, seed=3))
    template = ChatTemplate(smollm.model.vocabulary)
    prompts = [
        template.encode([{"role": "user", "content": text}])
        for text in ("What is a volcano?", "Write a poem about the sea.")
    ]
    folder = all_bundled()["smollm2-135m-instruct-head"]
    answers, accepted, tested = [], 0, 0
    with load_drafter(folder, smollm) as head:
        drafters = stack([NamedModel(head.name, head.model)], MaxGram(), MATRIX)
        for counts, those in (((), []), (MATRIX.counts(0), drafters)):
            for prompt in prompts:
                smollm.target.reset()
                with smollm.session(those, counts, rule=rule) as session:
                    stream = session.generate(prompt, max_tokens=80)
                    answers.append([token.id for token in stream])
                    accepted += session.stats.accepted
                    tested += session.stats.tested
    assert answers[:2] == answers[2:]
    assert 0.1 * tested < accepted < tested


@pytest.mark.model
def test_states_change_no_bit_of_a_real_model(smollm: Loaded):
    ids = smollm.model.vocabulary.encode("One, two, three, four, five, six. " * 12)
    rows = []
    for notes in (False, True):
        smollm.target.reset()
        if notes:
            states = smollm.target.note_states()
        context = Context(ids[:40])
        for width in (0, 0, 3, 0, 7, 0):
            draft = Draft.chain(ids[50 : 50 + width], "test") if width else NOTHING
            rows.append(score_one(smollm.target, context, draft).logits.copy())
            context.append(ids[len(context) : len(context) + 1])
    for before, after in zip(rows[:6], rows[6:], strict=True):
        assert np.array_equal(before, after)
    table = TargetFile(smollm.model.path).table(np.arange(2000, dtype=np.int32))
    state = states.of(context, len(context) - 2, len(context) - 1)[0]
    # The weights are quantised, and so are the numbers they meet.
    assert np.corrcoef(table @ state, rows[-1][0][:2000])[0, 1] > 0.99


@pytest.mark.model
def test_a_drafter_that_promises_much_is_used_and_changes_nothing(
    edgecs: Callable[..., Outcome], model_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = all_bundled()["smollm2-135m-instruct-head"]
    monkeypatch.setattr(builder, "bundled_for", lambda model: folder)
    monkeypatch.setattr(
        speculation_profile, "expected_speedup", lambda folder, times: 2.0
    )
    fixed = ("generate", "-m", model_path, "-c", 512, "-p", "What is rain?", "-s", 1)
    fixed += ("-v",)
    used = edgecs(*fixed, "-n", 40)
    assert used.code == 0, used.err
    assert "target <- smollm2-135m-instruct-head <- mag" in used.err
    assert used.out == edgecs(*fixed, "-n", 40, "--no-spec").out
