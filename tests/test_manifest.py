"""Manifests: what is not understood is refused, by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgecs.errors import ModelError
from edgecs.manifest import (
    HubSource,
    WheelSource,
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
    assert all(m.sha256 and m.size for m in manifests.values())


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
