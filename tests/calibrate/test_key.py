"""Keys: a load option counts as its field says, and nothing else has to be told."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import pytest

from edgecs.calibrate import profile
from edgecs.calibrate.profile import Key, Profile, Profiles
from edgecs.engines.load_options import LoadOptions
from edgecs_cli.commands.generate import generate
from edgecs_cli.options import common
from tests.keys import KEY, another, other_key

EFFECTS = {field.name: field.metadata["effect"] for field in fields(LoadOptions)}
# For programs only.
UNFLAGGED = {"n_batch", "max_draft", "sequences", "most_ctx", "heads"}


def both(name: str) -> tuple[Key, Key]:
    """A key, and one of a target for which one option is different."""
    return KEY, other_key(**{name: another(name, getattr(KEY.options, name))})


@pytest.mark.parametrize("name", [n for n, e in EFFECTS.items() if e != "none"])
def test_an_option_that_changes_calls_has_a_slot_of_its_own(name: str):
    one, other = both(name)
    assert one != other
    assert one.slot != other.slot
    (sentence,) = other.differences(one)
    assert sentence.startswith(f"{name} ")


@pytest.mark.parametrize("name", [n for n, e in EFFECTS.items() if e == "none"])
def test_an_option_that_changes_no_call_does_not_count(name: str):
    one, other = both(name)
    assert one == other
    assert one.slot == other.slot
    assert one.named() == other.named()
    assert not other.differences(one)


@pytest.mark.parametrize("name", EFFECTS)
def test_cells_depend_on_the_options_that_change_bits(name: str):
    one, other = both(name)
    assert (one.bits != other.bits) == (EFFECTS[name] == "bits")


def test_other_kernels_of_the_same_set_are_stale_and_have_the_same_slot():
    old, new = (other_key(kernels=f"avx2-{digest}") for digest in ("01", "02"))
    assert old.slot == new.slot
    assert old.bits != new.bits
    assert new.differences(old) == ["kernels avx2-02, was avx2-01"]


@pytest.mark.parametrize("name", EFFECTS)
def test_what_a_command_is_told_reaches_the_field(name: str):
    values = {param.name: param.default for param in generate.params}
    usual = LoadOptions()
    assert common.load_options(values) == usual
    assert (name in values) == (name not in UNFLAGGED)
    if name in values:
        value = another(name, getattr(usual, name))
        told = common.load_options({**values, name: value})
        assert told == replace(usual, **{name: value})


@dataclass(frozen=True)
class More(LoadOptions):
    """Load options of a later version."""

    fast: int = field(default=1, metadata={"effect": "bits"})
    quiet: bool = field(default=False, metadata={"effect": "none"})


def test_a_new_option_needs_its_flag_and_its_field_only(monkeypatch, tmp_path: Path):
    for module in (profile, common):
        monkeypatch.setattr(module, "LoadOptions", More)
    values = {param.name: param.default for param in generate.params}
    quiet, fast = (
        replace(KEY, options=common.load_options({**values, "threads": 2, **more}))
        for more in ({"fast": 1, "quiet": True}, {"fast": 2, "quiet": False})
    )
    assert fast.differences(quiet) == ["fast 2, was 1"]
    assert quiet.slot != fast.slot
    profiles = Profiles(tmp_path)
    assert profiles.save(Profile(fast))
    assert profiles.load(fast) == (Profile(fast), None)
    assert profiles.load(quiet) == (None, None)
    assert [found for _, found in profiles.all()] == [Profile(fast)]
