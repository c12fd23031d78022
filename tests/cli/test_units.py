"""Units for login, and one server for each port."""

from __future__ import annotations

import json
import os
import plistlib
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import platformdirs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecs.errors import ConfigError
from edgecs_cli.single_instance import single_instance
from edgecs_cli.units import _quoted
from tests.commands import Edgecs, one_line

INSTALL = ("serve", "-m", "qwen3:4b", "--install-unit")
REMOVE = ("serve", "-m", "qwen3:4b", "--uninstall-unit")


@pytest.fixture
def units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the user's units, on a system with systemd."""
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "config" / "systemd" / "user"


def test_a_unit_has_the_options_and_only_its_owner_reads_it(
    edgecs: Edgecs, units: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    Path("my model.gguf").touch()
    options = ("-c", 4096, "--no-repack", "--allow-origin", "a", "--allow-origin", "b")
    made = edgecs("serve", "-m", "my model.gguf", "--install-unit", *options)
    unit = units / "edgecs.service"
    assert (made.code, made.out) == (0, f"{unit}\n")
    assert "systemctl --user enable --now edgecs.service" in made.err
    assert stat.S_IMODE(unit.stat().st_mode) == 0o600
    (start,) = [x for x in unit.read_text().splitlines() if x.startswith("ExecStart")]
    model = _quoted(str(tmp_path / "my model.gguf"))
    for part in (f"--model {model}", "--ctx-size 4096", "--no-repack"):
        assert part in start
    assert start.count("--allow-origin") == 2
    assert "install-unit" not in start
    assert "replaced" in edgecs(*INSTALL).err
    gone = edgecs(*REMOVE)
    assert (gone.code, gone.out) == (0, f"{unit}\n")
    assert not unit.exists()
    assert "nothing to remove" in edgecs(*REMOVE).err
    assert list(units.iterdir()) == []


def test_each_port_has_a_unit(edgecs: Edgecs, units: Path):
    assert edgecs(*INSTALL, "--port", 9000).code == 0
    assert (units / "edgecs-9000.service").exists()
    one_line(edgecs(*INSTALL, "--port", 0), 2, "a unit needs a port of its own")


@pytest.mark.parametrize("kind", ["file", "link"])
def test_what_edgecs_did_not_write_stays(edgecs: Edgecs, units: Path, kind: str):
    units.mkdir(parents=True)
    unit, other = units / "edgecs.service", units / "other"
    other.write_text("[Service]\nExecStart=/bin/true\n")
    if kind == "link":
        unit.symlink_to(other)
    else:
        shutil.copy(other, unit)
    for command in (INSTALL, REMOVE):
        one_line(edgecs(*command), 2, "was not written by edgecs")
    assert unit.read_text() == other.read_text()


def test_no_secret_is_in_a_unit(edgecs: Edgecs, units: Path, tmp_path, monkeypatch):
    one_line(edgecs(*INSTALL, "--api-key", "hunter2"), 2, "give --api-key-file")
    monkeypatch.setenv("EDGECS_SERVE_API_KEY", "hunter2")
    one_line(edgecs(*INSTALL), 2, "give --api-key-file")
    monkeypatch.delenv("EDGECS_SERVE_API_KEY")
    key = tmp_path / "key"
    key.write_text("hunter2")
    key.chmod(0o644)
    made = edgecs(*INSTALL, "--api-key-file", key, "--host", "0.0.0.0")
    assert made.code == 0
    assert f"chmod 600 {key}" in made.err
    text = (units / "edgecs.service").read_text()
    assert str(key) in text
    assert "hunter2" not in text


def test_a_unit_for_macos(edgecs: Edgecs, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setenv("HOME", str(tmp_path))
    made = edgecs(*INSTALL)
    path = tmp_path / "Library" / "LaunchAgents" / "edgecs.plist"
    assert made.out == f"{path}\n"
    assert "launchctl bootstrap" in made.err
    unit = plistlib.loads(path.read_bytes())
    assert unit["Label"] == "edgecs"
    assert unit["ProgramArguments"][-2:] == ["--model", "qwen3:4b"]
    assert unit["KeepAlive"] == {"SuccessfulExit": False}
    assert edgecs(*REMOVE).out == f"{path}\n"


def test_other_systems_are_told_what_to_use(edgecs: Edgecs, units: Path, monkeypatch):
    monkeypatch.setattr("edgecs_cli.units.sys.platform", "win32")
    one_line(edgecs(*INSTALL), 2, "there are no units for win32")


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd")
def test_systemd_takes_the_unit(edgecs: Edgecs, units: Path, tmp_path: Path):
    run = tmp_path / "run"
    run.mkdir(mode=0o700)
    assert edgecs(*INSTALL, "--allow-origin", 'a b$%"\\').code == 0
    done = subprocess.run(
        ["systemd-analyze", "verify", "--user", units / "edgecs.service"],
        env={**os.environ, "XDG_RUNTIME_DIR": str(run)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")


@given(st.text(max_size=40))
def test_an_argument_stays_one_line_and_one_argument(text: str):
    quoted = _quoted(text)
    assert not set(quoted) & set("\n\r\0\t")
    bare = quoted.replace("\\\\", "").replace('\\"', "")
    assert bare.count('"') in (0, 2)
    if '"' not in bare:
        assert quoted == text
        assert not set(text) & set(" '$%;#")
    assert "%" not in bare.replace("%%", "")
    assert "$" not in bare.replace("$$", "")


def test_a_second_server_on_a_port_is_told_of_the_first():
    with (
        single_instance(8123, "http://127.0.0.1:8123"),
        pytest.raises(ConfigError) as error,
        single_instance(8123, "http://127.0.0.1:8123"),
    ):
        raise AssertionError
    about = f"port 8123 (pid {os.getpid()}, http://127.0.0.1:8123): use it"
    assert about in str(error.value)
    with single_instance(8123, "x"), single_instance(8124, "y"):
        pass
    with single_instance(0, "x"), single_instance(0, "y"):
        pass


@pytest.mark.parametrize(
    "text", ["", "[]", '{"pid": "x"}', "\0", "[" * 4000, "x" * 9000]
)
def test_a_damaged_note_of_the_first_is_left_out(text: str):
    with single_instance(8123, "u"):
        folder = Path(platformdirs.user_state_dir("edgecs")) / "serve"
        assert json.loads((folder / "8123.json").read_text())["url"] == "u"
        (folder / "8123.json").write_text(text)
        with (
            pytest.raises(ConfigError, match="already on port 8123: use it"),
            single_instance(8123, "u"),
        ):
            raise AssertionError


def test_a_folder_that_cannot_be_written_does_not_stop_a_server(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setattr(platformdirs, "user_state_dir", lambda name: str(file))
    with single_instance(8123, "u"):
        pass
