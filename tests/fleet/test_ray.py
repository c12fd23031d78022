"""Workers of a real Ray cluster on this machine, which a test starts and ends."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgecs.fleet import ray_pool
from edgecs_convert.distill.samples import read_samples
from tests.commands import one_line
from tests.conftest import Outcome
from tests.rooms import FOLDERS, ROOT

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="the extra 'ray' is not installed"
)


@needs_ray
@pytest.mark.timeout(600)  # on a busy machine Ray takes minutes to start
def test_a_killed_worker_costs_no_answer(tiny_gguf: Path, tmp_path: Path):
    """The data set is that of one process, and stdout has nothing of Ray's."""
    paths = [ROOT, *(folder.parent for folder in FOLDERS.values())]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    script = "tests.fleet.ray_script"
    done = subprocess.run(
        [sys.executable, "-m", script, str(tiny_gguf), str(tmp_path)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
        timeout=570,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (tmp_path / "killed").exists()
    lost = [line for line in found["told"] if "is lost" in line]
    assert len(lost) == 1
    assert "is done again" in lost[0]
    assert found["refused"] == "ModelError: the file is another one"
    alone, apart = (
        [
            (s.number, s.tokens.tolist(), s.top_ids.tolist(), s.states.tobytes())
            for s in read_samples(tmp_path / name, 600)
        ]
        for name in ("alone", "apart")
    )
    assert alone == apart
    every = [s.number for s in read_samples(tmp_path / "apart")]
    assert len(every) == len({*every})


def test_without_ray_a_sentence_says_what_to_install(
    edgecs: Callable[..., Outcome], tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ray_pool, "find_spec", lambda name: None)
    command = ("bench", "-m", tiny_gguf, "--ray", "local", "-q")
    one_line(
        edgecs(*command), 2, 'ray, which is not installed: pip install "edgecs[ray]"'
    )


@needs_ray
def test_a_cluster_that_is_not_there_is_a_sentence(
    edgecs: Callable[..., Outcome], tiny_gguf: Path
):
    command = ("bench", "-m", tiny_gguf, "--ray", "127.0.0.1:1", "-q")
    one_line(edgecs(*command), 2, "nothing answers at 127.0.0.1:1")


def test_nothing_of_ray_is_imported_unless_it_is_asked_for():
    code = (
        "import sys, edgecs_cli.commands.distill, edgecs_cli.commands.bench, "
        "edgecs_bench.run.fleet, edgecs.fleet.ray_pool; "
        "print([name for name in sys.modules if name.split('.')[0] == 'ray'])"
    )
    paths = [ROOT, *(folder.parent for folder in FOLDERS.values())]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert done.stdout == "[]\n", done.stderr
