"""`edgecs memory`, the option --memory, and the one question of a chat."""

from __future__ import annotations

import io
import json
import stat
import sys
from pathlib import Path

import platformdirs
import pytest

from edgecs.memory.consent import decide, decided
from edgecs.memory.documents import Documents
from edgecs.memory.files import LARGEST
from edgecs_cli import clipboard
from tests.commands import Edgecs, generate, one_line
from tests.terminal import Terminal


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the memory of the user is, in this process and those it starts."""
    data = tmp_path / "data"
    monkeypatch.setenv("XDG_DATA_HOME", str(data))
    monkeypatch.setattr(platformdirs, "user_data_dir", lambda name: str(data / name))
    return data / "edgecs" / "memory"


def listed(edgecs: Edgecs) -> dict[str, object]:
    return json.loads(edgecs("memory", "show", "--json").out)


def test_files_and_folders_are_added_shown_found_and_deleted(
    edgecs: Edgecs, tmp_path: Path
):
    notes = tmp_path / "notes"
    (notes / "deep").mkdir(parents=True)
    (notes / ".git").mkdir()
    (notes / "a.md").write_text("The quick brown fox\nis quick.")
    (notes / "deep" / "b.py").write_text("print('quick')")
    (notes / ".env").write_text("PASSWORD=quick")
    (notes / ".git" / "x").write_text("quick")
    (notes / "picture").write_bytes(b"\x89PNG\0quick")
    (notes / "empty").write_text(" \n")
    (notes / "link").symlink_to("/etc/passwd")
    done = edgecs("memory", "add", notes)
    assert (done.code, done.err) == (0, "2 texts added, 2 without text left out\n")
    again = edgecs("memory", "add", notes / "a.md")
    assert again.err == "0 texts added, 1 already there\n"
    found = listed(edgecs)
    names = [Path(one["source"]).name for one in found["documents"]]
    assert names == ["b.py", "a.md"]
    assert found["state"] == "not decided"
    shown = edgecs("memory", "show")
    assert "a.md" in shown.out
    assert "2 texts" in shown.err
    assert edgecs("memory", "show", 1).out == "The quick brown fox\nis quick.\n"
    lines = edgecs("memory", "search", "QUICK brown").out.splitlines()
    assert len(lines) == 1
    assert lines[0].endswith("The quick brown fox")
    assert len(json.loads(edgecs("memory", "search", "quick", "--json").out)) == 2
    assert edgecs("memory", "search", "%").err == "it is in no text\n"
    assert edgecs("memory", "clear", 1, 99).err == "1 texts deleted\n"
    assert [one["id"] for one in listed(edgecs)["documents"]] == [2]
    assert edgecs("memory", "clear", "--yes").err == "1 texts deleted\n"
    assert listed(edgecs)["documents"] == []


def test_a_file_that_has_changed_is_replaced(edgecs: Edgecs, tmp_path: Path):
    for text in ("one", "two"):
        (tmp_path / "a").write_text(text)
        edgecs("memory", "add", tmp_path / "a")
    (only,) = listed(edgecs)["documents"]
    assert edgecs("memory", "show", only["id"]).out == "two\n"


def test_an_export_has_every_text_and_is_private(edgecs: Edgecs, tmp_path: Path):
    (tmp_path / "a").write_text("caf\N{LATIN SMALL LETTER E WITH ACUTE}\n")
    edgecs("memory", "add", tmp_path / "a")
    out = tmp_path / "all.jsonl"
    assert edgecs("memory", "export", "-o", out).err == f"1 texts in {out}\n"
    (line,) = out.read_text("utf-8").splitlines()
    assert json.loads(line)["text"] == "caf\N{LATIN SMALL LETTER E WITH ACUTE}\n"
    assert json.loads(edgecs("memory", "export").out) == json.loads(line)
    if sys.platform != "win32":
        assert stat.S_IMODE(out.stat().st_mode) == 0o600


def test_looking_creates_nothing(edgecs: Edgecs, folder: Path):
    for words in (["show"], ["search", "x"], ["export"], ["clear", "--yes"]):
        assert edgecs("memory", *words).code == 0
    assert not folder.exists()


def test_bad_input_is_one_sentence(edgecs: Edgecs, tmp_path: Path):
    (tmp_path / "large").write_bytes(b"a" * (LARGEST + 1))
    (tmp_path / "odd").write_bytes(b"a\0b")
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    add = ("memory", "add")
    one_line(edgecs(*add, tmp_path / "no"), 2, "cannot be read: No such file")
    one_line(edgecs(*add, tmp_path / "large"), 2, "it has more than 8 MiB")
    one_line(edgecs(*add, tmp_path / "odd"), 2, "is not text in UTF-8")
    one_line(edgecs(*add, tmp_path / "latin"), 2, "is not text in UTF-8")
    one_line(edgecs("memory", "show", 3), 2, "has no document 3")
    for words in (["add"], ["clear"], ["show", "0"]):
        assert edgecs("memory", *words).code == 2
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "memory.db").write_bytes(b"nothing of the kind, for long" * 99)
    one_line(edgecs("memory", "show", "--memory", bad), 2, "is not a database")
    done = edgecs("memory", "clear", "-y", "--memory", bad)
    assert done.err == "the memory could not be read, and was deleted\n"
    assert edgecs("memory", "show", "--memory", bad).code == 0


def test_the_clipboard_is_added(edgecs: Edgecs, monkeypatch: pytest.MonkeyPatch):
    program = (sys.executable, "-c", "print('copied')")
    monkeypatch.setattr(clipboard, "_PROGRAMS", (("no-such-program",), program))
    assert edgecs("memory", "add", "--clipboard").err == "1 texts added\n"
    assert edgecs("memory", "show", 1).out == "copied\n\n"
    monkeypatch.setattr(clipboard, "_PROGRAMS", (("no-such-program",),) * 2)
    one_line(edgecs("memory", "add", "--clipboard"), 2, "clipboard cannot be read")


def kept(folder: Path) -> list[str]:
    if not folder.exists():
        return []
    with Documents(folder) as documents:
        return [one.kind for one in documents.all()]


def test_answers_are_kept_when_the_user_said_so(
    edgecs: Edgecs, tiny_gguf: Path, folder: Path
):
    ask = ("-n", 12, "--server", "off", "--offline")
    assert generate(edgecs, tiny_gguf, *ask).code == 0
    assert not folder.exists()
    edgecs("memory", "on")
    generate(edgecs, tiny_gguf, *ask, "--memory", "off")
    assert kept(folder) == []
    generate(edgecs, tiny_gguf, *ask)
    assert kept(folder) == ["answer"]
    edgecs("memory", "off")
    generate(edgecs, tiny_gguf, *ask, "-n", 15)
    assert kept(folder) == ["answer"]


def test_a_folder_that_is_given_is_used_without_a_decision(
    edgecs: Edgecs, tiny_gguf: Path, tmp_path: Path, folder: Path
):
    decide(folder, False)
    ask = ("-n", 12, "--server", "off", "--memory", tmp_path / "mine")
    plain = generate(edgecs, tiny_gguf, "-n", 12, "--server", "off", "--no-spec")
    assert [generate(edgecs, tiny_gguf, *ask).out for _ in range(2)] == [plain.out] * 2
    assert kept(tmp_path / "mine") == ["answer"]
    assert kept(folder) == []


def test_an_audit_drafts_from_a_memory_and_adds_nothing(
    edgecs: Edgecs, tiny_gguf: Path, tmp_path: Path, folder: Path
):
    """A folder that is given, and that of a user who keeps answers."""
    decide(folder, True)
    (tmp_path / "a.txt").write_text("The quick brown fox. " * 9)
    edgecs("memory", "add", tmp_path / "a.txt")
    ask = ("audit", "-m", tiny_gguf, "--limit", 1, "-n", 12, "-c", 512, "-q", "--json")
    for where in ("auto", folder):
        done = edgecs(*ask, "--memory", where)
        assert done.code == 0, done.err
        report = json.loads(done.out)
        assert report["identical"]
        assert "user" in report["chain"]
        assert kept(folder) == ["file"]
    assert "user" not in json.loads(edgecs(*ask).out)["chain"]


def test_texts_are_read_by_the_model_that_uses_them(
    edgecs: Edgecs, tiny_gguf: Path, tmp_path: Path
):
    mine = tmp_path / "mine"
    (tmp_path / "a").write_text("some text of a file " * 20)
    edgecs("memory", "add", tmp_path / "a", "--memory", mine)
    ask = ("-n", 2, "--server", "off", "--memory", mine, "-v")
    said = generate(edgecs, tiny_gguf, *ask).err
    assert "memory: 400 tokens in" in said


def test_a_memory_that_cannot_be_used_is_a_sentence_and_an_answer(
    edgecs: Edgecs, tiny_gguf: Path, tmp_path: Path
):
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "memory.db").write_bytes(b"nothing of the kind, for long" * 99)
    ask = ("-n", 4, "--server", "off", "--memory", bad)
    done = generate(edgecs, tiny_gguf, *ask)
    assert done.code == 0
    assert done.out.strip()
    assert "no memory is used: " in done.err
    assert "edgecs memory clear" in done.err


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
@pytest.mark.parametrize(("typed", "state"), [("y\r", True), ("\r", False)])
def test_a_chat_asks_once(
    tiny_gguf: Path,
    tmp_path: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    typed: str,
    state: bool,
):
    monkeypatch.setenv("EDGECS_MEMORY", "auto")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    options = ("-m", tiny_gguf, "-c", 512, "-n", 12, "--temp", 0, "--server", "off")
    terminal = Terminal(*options)
    terminal.wait(r"for you alone to read, and are sent nowhere[\s\S]*Keep answers\?")
    terminal.type(typed)
    terminal.wait(r"edgecs memory (on|off) changes that[\s\S]*speculation on\s+>")
    terminal.type("hello\r")
    terminal.wait(r"12 tokens · ")
    terminal.type("\x04")
    assert terminal.end() == 0
    assert decided(folder) is state
    assert kept(folder) == ["answer"] * state
    again = Terminal(*options)
    assert "Keep answers?" not in again.wait(r"speculation on\s+>")
    again.type("\x04")
    assert again.end() == 0


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
def test_a_question_that_is_not_answered_comes_again(
    tiny_gguf: Path, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("EDGECS_MEMORY", "auto")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    terminal = Terminal("-m", tiny_gguf, "-c", 512, "--server", "off")
    terminal.wait(r"Keep answers\?")
    terminal.type("\x03")
    terminal.wait(r"speculation on\s+>")
    terminal.type("\x04")
    assert terminal.end() == 0
    assert decided(folder) is None


def test_without_a_terminal_nothing_is_asked(
    edgecs: Edgecs, tiny_gguf: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))
    done = edgecs("chat", "-m", tiny_gguf, "-c", 512, "--server", "off")
    assert done.code == 0
    assert not folder.exists()
