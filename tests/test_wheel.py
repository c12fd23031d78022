"""The wheel: compiled kernels make it one for a platform."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

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
