"""The wheel: compiled kernels make it one for a platform."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.tags import platform_tags

ROOT = Path(__file__).parents[1]


def built(tmp_path: Path, libraries: tuple[str, ...]) -> zipfile.ZipFile:
    """The wheel of a small project with edgecs's build hook."""
    native = tmp_path / "edgecs" / "native"
    native.mkdir(parents=True)
    (tmp_path / ".gitignore").write_text("*.so\n")
    settings = (ROOT / "pyproject.toml").read_text().partition("[tool.hatch.build.")
    hook = "[tool.hatch.build." + settings[2].partition("\n[tool.pytest")[0]
    (tmp_path / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
        f'[project]\nname = "edgecs"\nversion = "1"\n\n{hook}'
    )
    for name in ("cli/edgecs_cli", "convert/edgecs_convert", "bench/edgecs_bench"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "__init__.py").touch()
    (tmp_path / "models" / "edgecs_models").mkdir(parents=True)
    (tmp_path / "models" / "edgecs_models" / "__init__.py").touch()
    hook_file = ROOT / "edgecs" / "native" / "wheel.py"
    (native / "wheel.py").write_text(hook_file.read_text())
    (native / "kernels.cpp").write_text("int x;")
    for library in libraries:
        (native / library).write_bytes(b"\x7fELF")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", "dist"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    return zipfile.ZipFile(wheel)


def test_with_a_library_it_is_for_this_platform(tmp_path: Path):
    wheel = built(tmp_path, ("edgecs-0123456789abcdef.so", "other.so"))
    name = Path(str(wheel.filename)).name
    assert name in {f"edgecs-1-py3-none-{tag}.whl" for tag in platform_tags()}
    libraries = [name for name in wheel.namelist() if name.endswith(".so")]
    assert libraries == ["edgecs/native/edgecs-0123456789abcdef.so"]
    assert "edgecs/native/kernels.cpp" in wheel.namelist()


def test_without_one_it_is_for_any(tmp_path: Path):
    wheel = built(tmp_path, ())
    assert str(wheel.filename).endswith("-none-any.whl")


@pytest.mark.model
def test_an_installed_wheel_answers(tmp_path: Path, model_path: Path):
    """In an environment of its own, without a compiler, as `pipx install` makes it.

    Other packages are those that are here: llama.cpp takes minutes to compile.
    """
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, ROOT]
    subprocess.run(build, check=True)
    (wheel,) = tmp_path.glob("edgecs-*.whl")
    assert wheel.stat().st_size <= 13 << 20
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--no-deps", wheel]
    subprocess.run(install, check=True)
    (packages,) = (tmp_path / "venv" / "lib").glob("python3*/site-packages")
    (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    clean = {name: os.environ[name] for name in ("HOME", "LANG") if name in os.environ}
    clean |= {"PATH": "", "XDG_CACHE_HOME": str(tmp_path / "cache")}

    def edgecs(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [tmp_path / "venv" / "bin" / "edgecs", *map(str, arguments)]
        done = subprocess.run(
            command, capture_output=True, text=True, env=clean, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        return done

    assert edgecs("--version").stdout.startswith("edgecs, version ")
    assert "edgecs's for" in edgecs("doctor").stdout
    ask = ("generate", "-m", model_path, "-p", "What is a llama?", "-n", 8, "-v")
    answer = edgecs(*ask, "--temp", 0)
    assert answer.stdout.strip()
    assert "kernels: edgecs's for " in answer.stderr
