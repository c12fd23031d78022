"""The phrases of a model, and the file that they are in."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from random import Random

import pytest

from edgecs.errors import ConfigError
from edgecs.memory import phrases as module
from edgecs.memory.model_files import Identity, listed_files, remove_files
from edgecs.memory.phrases import open_phrases, write_phrases

VOCABULARY = 50
MODEL = Identity("A model/x", "ab" * 16, "cd" * 32, VOCABULARY)
posix = pytest.mark.skipif(os.name != "posix", reason="it needs Unix")


def test_phrases_are_found_by_the_model_that_said_them(tmp_path: Path):
    made = write_phrases(tmp_path, MODEL, [[1, 2, 3, 4, 5], [7, 8, 9]])
    opened = open_phrases(tmp_path, MODEL)
    assert opened is not None
    assert made.tokens == opened.tokens == 8
    for corpus in (made, opened):
        match = corpus.match([9, 9, 2, 3], 4)
        assert match is not None
        assert (match.length, match.tokens) == (2, [4, 5])
        assert corpus.match([4, 5], 4) is None  # nothing follows
        assert corpus.match([3], 4) is None
        assert corpus.match([2, 3], 0) is None
    assert open_phrases(tmp_path, MODEL._replace(fingerprint="11" * 16)) is None
    assert open_phrases(tmp_path / "none", MODEL) is None


def test_a_model_that_was_renamed_keeps_its_one_file(tmp_path: Path):
    write_phrases(tmp_path, MODEL, [[1, 2, 3]])
    renamed = MODEL._replace(name="other")
    assert open_phrases(tmp_path, renamed) is not None
    write_phrases(tmp_path, renamed, [[4, 5, 6]])
    (only,) = listed_files(tmp_path)
    assert (only.kind, only.model) == ("phrases", "A_model_x")
    found = open_phrases(tmp_path, MODEL)
    assert found is not None
    assert found.match([1, 2], 1) is None
    assert found.match([4, 5], 1) is not None


def test_a_file_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "MOST_TOKENS", 9)
    made = write_phrases(tmp_path, MODEL, [[1, 2, 3]] * 2 + [[4, 5, 6], [7, 8, 9]])
    assert made.tokens == 6
    assert made.match([4, 5], 1) is not None
    assert made.match([7, 8], 1) is None
    assert write_phrases(tmp_path, MODEL, []).match([1, 2], 1) is None


@pytest.mark.parametrize("case", range(30))
def test_a_damaged_file_is_a_sentence_or_gives_tokens(tmp_path: Path, case: int):
    write_phrases(tmp_path, MODEL, [[1, 2, 3, 4], [5, 6, 7, 8, 9]])
    (file,) = listed_files(tmp_path)
    random, data = Random(case), bytearray(file.path.read_bytes())
    if case % 3:
        for _ in range(random.choice((1, 5, 50))):
            data[random.randrange(len(data))] = random.randrange(256)
    else:
        del data[random.randrange(len(data)) :]
    file.path.write_bytes(data)
    said, found = "`edgecs memory build` writes them again", None
    try:
        found = open_phrases(tmp_path, MODEL)
    except ConfigError as error:
        said = str(error)
    assert said.isprintable()
    assert said.endswith("`edgecs memory build` writes them again")
    for end in ([1, 2], [2, 3], [6, 7]) if found else ():
        match = found.match(end, 9)
        assert not match or all(0 <= i < VOCABULARY for i in match.tokens)


def test_phrases_of_another_tokenizer_are_a_sentence(tmp_path: Path):
    write_phrases(tmp_path, MODEL, [[1, 2, 3]])
    with pytest.raises(ConfigError, match="it is of another model.*memory build"):
        open_phrases(tmp_path, MODEL._replace(tokenizer="00" * 32))


@posix
def test_they_are_private_and_deleted_alone(tmp_path: Path):
    before = os.umask(0)
    try:
        write_phrases(tmp_path / "memory", MODEL, [[1, 2, 3]])
    finally:
        os.umask(before)
    for path in (tmp_path / "memory").rglob("*"):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), path
    assert remove_files(tmp_path / "memory", "recycling") == 0
    assert remove_files(tmp_path / "memory", "phrases") == 1
    assert listed_files(tmp_path / "memory") == []


def test_a_disk_that_is_full_is_a_sentence_and_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write_phrases(tmp_path, MODEL, [[1, 2, 3]])

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as context:
        context.setattr(module, "written", full)
        with pytest.raises(ConfigError, match="No space left on device.*make room"):
            write_phrases(tmp_path, MODEL, [[4, 5, 6]])
    found = open_phrases(tmp_path, MODEL)
    assert found is not None
    assert found.match([1, 2], 1) is not None


def test_other_files_in_the_folder_are_not_listed(tmp_path: Path):
    write_phrases(tmp_path, MODEL, [[1, 2, 3]])
    (file,) = listed_files(tmp_path)
    for name in ("x.phrases", f"{'ab' * 16}-x.other", f"{'AB' * 16}-x.phrases"):
        (file.path.parent / name).write_bytes(b"")
    assert listed_files(tmp_path) == [file]
