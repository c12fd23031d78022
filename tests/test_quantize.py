"""Other quantisations of a GGUF: files that load; one sentence where there are none."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from edgecs.load import load
from edgecs.options import LoadOptions
from edgecs_convert.quantize import main


def quantize(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_a_variant_loads_and_is_made_once(tiny_gguf: Path, tmp_path: Path):
    made = tmp_path / "new" / f"{tiny_gguf.stem}-bf16.gguf"
    for _ in range(2):
        outcome = quantize(tiny_gguf, made.parent, "--to", "bf16")
        assert (outcome.exit_code, outcome.stdout) == (0, f"{made}\n")
        assert [*made.parent.iterdir()] == [made]
        when = made.stat().st_mtime_ns
    assert made.stat().st_mtime_ns == when
    assert made.stat().st_size < tiny_gguf.stat().st_size
    with load(made, LoadOptions(n_ctx=256)) as loaded:
        assert loaded.model.vocabulary.encode("hello").size


@pytest.mark.parametrize("content", [b"", b"GGUF", b"no model at all" * 99])
def test_what_is_no_model_leaves_nothing(tmp_path: Path, content: bytes):
    model, folder = tmp_path / "model.gguf", tmp_path / "made"
    model.write_bytes(content)
    outcome = quantize(model, folder, "--to", "q8_0")
    assert outcome.exit_code == 1
    assert "llama.cpp cannot make q8_0 of" in outcome.stderr
    assert not [*folder.iterdir()]
