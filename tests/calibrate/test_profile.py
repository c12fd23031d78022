"""Profiles: what comes back is what was saved for just this key, or a reason."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecs.calibrate.profile import FORMAT, Key, Profile, Profiles
from edgecs.engines.load_options import (
    MOST_CELLS,
    MOST_THREADS,
    MOST_TOGETHER,
    KernelChoice,
    KVType,
    LoadOptions,
)
from tests.keys import KEY, other_key

PROFILE = Profile(
    KEY, {"seconds": [0.25, 0.5]}, {"same": [1, 2, 4]}, tuned="2025-01-31"
)
OTHERS: dict[str, Any] = {
    "model": "qwen",
    "fingerprint": "f" * 32,
    "build": "0.4.0",
    "device": "Apple M4",
    "n_gpu_layers": 12,
    "threads": 4,
    "flash_attention": "on",
    "type_k": "q8_0",
    "type_v": "q5_1",
    "repack": False,
    "mmap": False,
    "huge_pages": False,
    "kernels": "avx2-0123",
    "n_batch": 256,
    "leaves": 4,
    "swa_full": True,
    "rpc": "10.0.0.2:50052",
}
CHANGES = {
    "model": "model qwen, was model-Q4_K_M",
    "fingerprint": "the model file has changed",
    "build": "another build of the engine",
    "device": "device Apple M4, was AMD EPYC",
    "n_gpu_layers": "n_gpu_layers 12, was 0",
    "threads": "threads 4, was 2",
    "flash_attention": "flash_attention on, was auto",
    "type_k": "type_k q8_0, was f16",
    "type_v": "type_v q5_1, was f16",
    "repack": "repack False, was True",
    "mmap": "mmap False, was True",
    "huge_pages": "huge_pages False, was True",
    "kernels": "kernels avx2-0123, was llama",
    "n_batch": "n_batch 256, was 512",
    "leaves": "leaves 4, was 1",
    "swa_full": "swa_full True, was False",
    "rpc": "rpc 10.0.0.2:50052, was none",
}
MACHINE = {"fingerprint", "build", "device"}  # what nobody chooses by an option
NAMES = [*KEY.named()]
OPTIONS = KEY.options.having("bits", "time")  # those that a file tells
MIB = 1 << 20

numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
nothing_of_ours = values.filter(
    lambda value: not isinstance(value, dict) or "version" not in value
)
states = st.dictionaries(st.text(), values, max_size=3)
loads = st.fixed_dictionaries(
    {
        "n_ctx": st.integers(0, MOST_CELLS),
        "n_gpu_layers": st.integers(0) | st.sampled_from(["auto", "all"]),
        "threads": st.integers(0, MOST_THREADS),
        "type_k": st.sampled_from(get_args(KVType)),
        "type_v": st.sampled_from(get_args(KVType)),
        "kernels": st.sampled_from(get_args(KernelChoice)),
        "n_batch": st.integers(1, MOST_TOGETHER),
        "max_draft": st.just(0),
        **{n: st.booleans() for n, v in vars(LoadOptions()).items() if type(v) is bool},
    }
).map(lambda table: LoadOptions(**table))
keys = st.builds(
    Key,
    **{f.name: st.text() for f in fields(Key) if f.name != "options"},
    options=loads,
)


@pytest.fixture
def profiles(tmp_path: Path) -> Profiles:
    return Profiles(tmp_path / "cache" / "profiles")


@pytest.fixture
def file(profiles: Profiles) -> Path:
    """The file of PROFILE, saved."""
    assert profiles.save(PROFILE)
    (path,) = profiles.root.iterdir()
    return path


def table(**changes: Any) -> dict[str, Any]:
    """What the file of PROFILE says, with some parts or options of its key replaced."""
    key = {**vars(KEY), "options": OPTIONS, **changes}
    return {**vars(PROFILE), "key": key}


def written(**changes: Any) -> bytes:
    """A file's bytes, with some of its top-level values replaced."""
    return json.dumps({**table(), **changes}).encode()


def assert_unusable(profiles: Profiles, path: Path, why: str) -> None:
    profile, reason = profiles.load(KEY)
    assert profile is None
    assert reason is not None
    assert reason.startswith(why)
    assert reason.isprintable()
    assert len(reason) < 200
    assert profiles.all() == [(path, None)]


@given(key=keys, costs=states, chain=states, tuned=st.none() | st.text())
def test_what_is_saved_comes_back(tmp_path_factory, key, costs, chain, tuned):
    profiles = Profiles(tmp_path_factory.mktemp("profiles"))
    profile = Profile(key, costs, acceptance=chain, chain=chain, tuned=tuned)
    assert profiles.save(profile)
    assert profiles.load(key) == (profile, None)
    assert [found for _, found in profiles.all()] == [profile]


def test_where_nothing_was_saved_there_is_nothing_to_say(profiles: Profiles):
    assert profiles.load(KEY) == (None, None)
    assert profiles.all() == []
    assert profiles.remove(KEY)
    assert not profiles.root.exists()


def test_the_tests_change_every_field():
    assert NAMES == list(OTHERS) == list(CHANGES)
    assert all(KEY.named()[name] != OTHERS[name] for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_each_change_is_named_and_the_profile_not_used(profiles, file, name):
    key = other_key(**{name: OTHERS[name]})
    assert key.differences(KEY) == [CHANGES[name]]
    if name in MACHINE:
        assert key.slot == KEY.slot
    else:
        assert profiles.load(key) == (None, None)
        file.rename(file.with_name(f"{key.slot}.json"))
    assert profiles.load(key) == (None, f"stale: {CHANGES[name]}")


def test_all_changes_are_named_in_one_clause(profiles, file):
    key = replace(KEY, **{name: OTHERS[name] for name in MACHINE})
    assert key.differences(KEY) == [CHANGES[n] for n in NAMES if n in MACHINE]
    assert profiles.load(key) == (None, f"stale: {'; '.join(key.differences(KEY))}")
    assert not KEY.differences(replace(KEY))


def test_a_new_profile_takes_the_place_of_a_stale_one(profiles, file):
    profile = Profile(replace(KEY, build="0.4.0"), {"new": 1})
    assert profiles.save(profile)
    assert profiles.load(profile.key) == (profile, None)
    assert profiles.all() == [(file, profile)]
    assert profiles.load(KEY) == (None, "stale: another build of the engine")


@pytest.mark.parametrize("name", [n for n in NAMES if n not in MACHINE])
def test_option_sets_do_not_disturb_each_other(profiles, file, name):
    beside = Profile(other_key(**{name: OTHERS[name]}), {"other": 1})
    assert profiles.save(beside)
    assert profiles.load(KEY) == (PROFILE, None)
    assert profiles.load(beside.key) == (beside, None)
    assert len(profiles.all()) == 2
    assert profiles.remove(beside.key)
    assert profiles.load(beside.key) == (None, None)
    assert profiles.all() == [(file, PROFILE)]


@given(names=st.lists(st.text(), min_size=1, max_size=4, unique=True))
@settings(max_examples=50)
def test_any_model_name_has_a_file_of_its_own(tmp_path_factory, names):
    profiles = Profiles(tmp_path_factory.mktemp("profiles"))
    saved = [Profile(replace(KEY, model=name), {"of": name}) for name in names]
    assert all(map(profiles.save, saved))
    assert [profiles.load(p.key) for p in saved] == [(p, None) for p in saved]
    assert len(list(profiles.root.iterdir())) == len(names)


@pytest.mark.parametrize(
    "name", ["x" * 300, "../../up", "a/b", "nul\0", "\udcff", "é?*"]
)
def test_awkward_model_names_stay_in_the_folder(profiles, name):
    profile = Profile(replace(KEY, model=name))
    assert profiles.save(profile)
    assert profiles.load(profile.key) == (profile, None)
    (path,) = profiles.root.iterdir()
    assert path.name.isascii()


def test_the_file_says_which_model_it_is_about(profiles, file):
    assert file.name.startswith(KEY.model)


def test_a_file_cut_anywhere_is_unreadable(profiles, file):
    whole = file.read_bytes()
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        assert_unusable(profiles, file, "unreadable: ")
    file.write_bytes(whole)
    assert profiles.load(KEY) == (PROFILE, None)


@given(data=st.binary(max_size=200) | nothing_of_ours.map(json.dumps).map(str.encode))
def test_a_file_of_something_else_is_unreadable(tmp_path_factory, data):
    profiles = Profiles(tmp_path_factory.mktemp("profiles"))
    path = profiles.root / f"{KEY.slot}.json"
    path.write_bytes(data)
    assert_unusable(profiles, path, "unreadable: ")


@pytest.mark.parametrize("name", [f.name for f in fields(Profile)])
@given(value=values)
@settings(max_examples=40)
def test_a_value_of_the_wrong_type_is_unreadable(tmp_path_factory, name, value):
    right = getattr(PROFILE, name)
    wrong = [value] if isinstance(right, (dict, str)) else str(value)
    profiles = Profiles(tmp_path_factory.mktemp("profiles"))
    path = profiles.root / f"{KEY.slot}.json"
    path.write_bytes(written(**{name: wrong}))
    assert_unusable(profiles, path, "unreadable: ")


WRONG = [None, True, 4.0, [], {}, "text", 7]


@pytest.mark.parametrize("name", [f.name for f in fields(Key)])
@pytest.mark.parametrize("wrong", WRONG)
def test_a_key_of_the_wrong_types_is_unreadable(profiles, file, name, wrong):
    file.write_text(json.dumps(table(**{name: wrong})))
    if name != "options" and wrong == "text":
        profile, reason = profiles.load(KEY)
        assert profile is None
        assert str(reason).startswith("stale: ")
    else:
        assert_unusable(profiles, file, "unreadable: ")


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("wrong", [*WRONG, -1, 10**400, ["f16"], "q3_k"])
def test_options_that_nobody_can_choose_are_unreadable(profiles, file, name, wrong):
    file.write_text(json.dumps(table(options={**OPTIONS, name: wrong})))
    if type(wrong) is type(OPTIONS[name]) and wrong == OPTIONS[name]:
        assert profiles.load(KEY) == (PROFILE, None)
    elif (
        (name == "n_gpu_layers" and type(wrong) is int and wrong > 0)
        or wrong == 7
        or type(wrong) is type(OPTIONS[name]) is bool
    ):
        profile, reason = profiles.load(KEY)
        assert profile is None
        assert str(reason).startswith(("stale: ", "unreadable: "))
    else:
        assert_unusable(profiles, file, "unreadable: ")


def test_options_that_exclude_each_other_are_unreadable(profiles, file):
    both = {**OPTIONS, "type_v": "q8_0", "flash_attention": "off"}
    file.write_text(json.dumps(table(options=both)))
    assert_unusable(profiles, file, "unreadable: a q8_0 V cache needs flash attention")


def test_a_field_too_few_or_too_many_is_unreadable(profiles, file):
    tables: list[tuple[dict[str, Any], Callable[[dict[str, Any]], dict[str, Any]]]] = [
        (table(), lambda whole: whole),
        (table()["key"], lambda key: {**table(), "key": key}),
        (OPTIONS, lambda options: table(options=options)),
    ]
    for right, whole in tables:
        for name in right:
            for changed in (
                {k: v for k, v in right.items() if k != name},
                {**right, f"{name}_": 1},
            ):
                file.write_text(json.dumps(whole(changed)))
                assert_unusable(profiles, file, "unreadable: ")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
def test_a_number_that_is_none_is_unreadable(profiles, file, number):
    text = file.read_text()
    assert "0.25" in text
    file.write_text(text.replace("0.25", number))
    assert_unusable(profiles, file, "unreadable: ")


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, "9" * 5000, '"' + "\\ud800" * 9 + '"']
)
def test_json_made_to_hurt_is_unreadable(profiles, file, text):
    file.write_text(text)
    assert_unusable(profiles, file, "unreadable: ")


@pytest.mark.parametrize(
    "version", [FORMAT + 1, FORMAT - 1, 10**4000], ids=["next", "before", "huge"]
)
def test_another_format_is_stale_whatever_else_it_says(profiles, file, version):
    for text in (written(version=version), b'{"version": %d}' % version):
        file.write_bytes(text)
        assert_unusable(profiles, file, f"stale: file format {FORMAT}, was ")


@pytest.mark.parametrize("version", [None, True, 1.0, "1"])
def test_a_format_that_is_no_number_is_unreadable(profiles, file, version):
    file.write_bytes(written(version=version))
    assert_unusable(profiles, file, "unreadable: ")


def test_what_a_stale_file_says_is_fit_to_be_shown(profiles, file):
    for device in ("\x1b[31mred\n", "\ud800", "x" * 10_000):
        file.write_text(json.dumps(table(device=device)))
        profile, reason = profiles.load(KEY)
        assert profile is None
        assert str(reason).startswith("stale: device AMD EPYC, was ")
        assert str(reason).isprintable()
        assert len(str(reason)) < 200


def test_a_huge_file_is_unreadable_even_if_it_is_a_profile(profiles, file):
    whole = file.read_bytes()
    file.write_bytes(whole + b" " * (16 * MIB - len(whole)))
    assert profiles.load(KEY) == (PROFILE, None)
    with file.open("ab") as opened:
        opened.write(b" ")
    assert_unusable(profiles, file, "unreadable: it has more than 16 MiB")


def test_a_folder_in_the_place_of_a_file_is_unreadable_and_stays(profiles, file):
    file.unlink()
    file.mkdir()
    assert_unusable(profiles, file, "unreadable: ")
    assert not profiles.save(PROFILE)
    assert not profiles.remove(KEY)
    assert list(profiles.root.iterdir()) == [file]


def test_a_profile_that_would_be_too_big_to_read_is_not_saved(profiles, file):
    assert not profiles.save(replace(PROFILE, chain={"text": "x" * 16 * MIB}))
    assert profiles.load(KEY) == (PROFILE, None)
    assert list(profiles.root.iterdir()) == [file]


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_none_never_reach_the_file(profiles, file, number):
    with pytest.raises(ValueError, match="not JSON compliant"):
        profiles.save(replace(PROFILE, costs={"seconds": [number]}))
    assert profiles.load(KEY) == (PROFILE, None)
    assert list(profiles.root.iterdir()) == [file]


def test_a_file_in_the_place_of_the_folder_is_no_error(tmp_path: Path):
    (tmp_path / "file").write_text("")
    for root in (tmp_path / "file", tmp_path / "file" / "inside"):
        profiles = Profiles(root)
        assert not profiles.save(PROFILE)
        assert not profiles.remove(KEY)
        assert profiles.load(KEY)[0] is None
        assert profiles.all() == []


@pytest.mark.parametrize("mode", [0o500, 0o000])
def test_a_folder_without_permissions_is_no_error(profiles, file, mode):
    profiles.root.chmod(mode)
    try:
        if os.access(profiles.root, os.W_OK):
            pytest.skip("permissions do not stop this user")
        assert not profiles.save(replace(PROFILE, tuned=None))
        assert not profiles.remove(KEY)
        expected = PROFILE if mode else None
        assert profiles.load(KEY)[0] == expected
        assert [found for _, found in profiles.all()] == [expected] * bool(mode)
    finally:
        profiles.root.chmod(0o700)


@pytest.mark.parametrize("broken", ["mkdir", "open", "replace"])
def test_a_disk_that_fails_leaves_what_was_there(profiles, file, monkeypatch, broken):
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        if broken == "mkdir":
            patch.setattr(Path, "mkdir", fail)
        elif broken == "open":
            patch.setattr(os, "open", fail)
        else:
            patch.setattr(os, "replace", fail)
        assert not profiles.save(replace(PROFILE, tuned=None))
    assert profiles.load(KEY) == (PROFILE, None)
    assert list(profiles.root.iterdir()) == [file]


def test_ctrl_c_while_saving_leaves_no_temporary_file(profiles, file, monkeypatch):
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        profiles.save(replace(PROFILE, tuned=None))
    assert profiles.load(KEY) == (PROFILE, None)
    assert list(profiles.root.iterdir()) == [file]


def big(tag: int) -> Profile:
    """Large enough that a file written in place would be met half-written."""
    return replace(PROFILE, chain={"tag": tag, "text": str(tag) * 300_000})


def test_readers_never_meet_a_torn_file(profiles):
    assert profiles.save(big(0))
    done = threading.Event()

    def read() -> int:
        count = 0
        while not done.is_set() or not count:
            profile, reason = profiles.load(KEY)
            assert reason is None
            assert profile in wanted
            count += 1
        return count

    def save(tag: int) -> bool:
        return all(profiles.save(wanted[tag]) for _ in range(20))

    wanted = [big(tag) for tag in range(4)]
    with ThreadPoolExecutor() as pool:
        reader = pool.submit(read)
        savers = [pool.submit(save, tag) for tag in range(len(wanted))]
        try:
            assert all(saver.result() for saver in savers)
        finally:
            done.set()
        assert reader.result() > 0
    assert len(list(profiles.root.iterdir())) == 1


_SAVER = """
import sys
from pathlib import Path
from edgecs.calibrate.profile import Key, Profile, Profiles
from edgecs.engines.load_options import LoadOptions
root, tag = Path(sys.argv[1]), sys.argv[2]
key = Key("m", "f", "b", "d", LoadOptions(), "llama")
profile = Profile(key, {"tag": tag, "text": tag * 300_000})
sys.stdin.read(1)
print(all(Profiles(root).save(profile) for _ in range(30)))
"""


def test_processes_that_save_at_once_leave_one_whole_profile(profiles):
    command = [sys.executable, "-c", _SAVER, str(profiles.root)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    savers = [subprocess.Popen([*command, tag], **pipes) for tag in "ab"]
    for saver in savers:
        saver.stdin.write("g")
        saver.stdin.flush()
    assert [saver.communicate()[0].strip() for saver in savers] == ["True", "True"]
    ((_, profile),) = profiles.all()
    assert profile is not None
    tag = profile.costs["tag"]
    assert profile.costs == {"tag": tag, "text": tag * 300_000}
    assert tag in ("a", "b")
    assert len(list(profiles.root.iterdir())) == 1
