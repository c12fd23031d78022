"""What the opinion of a drafter says about copies, on answers that are known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgecs_bench.simulation.selection import copies, main
from edgecs_bench.simulation.traces import Proposals, Recording, Trace, write_traces

PROMPT, OUTPUT = [1, 2, 3, 4, 9, 1, 2], [3, 4, 9, 1, 2, 7, 8]


def trace(tokens: list[list[int]], sure: float = 0.9) -> Trace:
    stated = [[sure] * len(few) for few in tokens]
    said = {"d": Proposals(tokens, stated)}
    return Trace("a", "copy", PROMPT, OUTPUT, [1.0] * len(OUTPUT), said)


def test_a_drafter_that_is_right_agrees_with_right_copies_alone():
    perfect = [OUTPUT[at : at + 4] for at in range(len(OUTPUT))]
    found = [*copies(trace(perfect), "d")]
    assert found
    for one in found:
        if one.case.startswith("first"):
            assert one.right == (one.case == "first, drafter agrees")
        assert 0 < one.predicted < 1
    first = [one for one in found if one.case.startswith("first")]
    # Max-Gram copies the prompt: 4 9 1 2 3 after the first token, so the 7 is missed.
    assert [one.right for one in first] == [True, True, True, True, False]
    assert "after a draft, copy agreed" in {one.case for one in found}


@pytest.mark.parametrize("sure", [0.5, 0.9])
def test_a_drafter_that_is_wrong_differs(sure: float):
    found = [*copies(trace([[99]] * len(OUTPUT), sure), "d")]
    ending = " and is sure" if sure > 0.8 else ""
    assert {one.case for one in found} == {f"first, drafter differs{ending}"}
    assert sum(one.right for one in found) == 4


def test_the_command_counts_every_case(tmp_path: Path):
    perfect = [OUTPUT[at : at + 4] for at in range(len(OUTPUT))]
    file = tmp_path / "some.jsonl.gz"
    write_traces(file, Recording("t", ("d",), 0.0, 1, 4, (trace(perfect),)))
    done = CliRunner().invoke(main, [str(file)])
    assert done.exit_code == 0, done.output
    cases = json.loads(done.stdout.splitlines()[-1])["cases"]
    assert sum(case["tokens"] for case in cases) == len([*copies(trace(perfect), "d")])


def test_traces_without_a_drafter_are_refused(tmp_path: Path):
    file = tmp_path / "some.jsonl"
    write_traces(file, Recording("t", (), 0.0, 1, 4, ()))
    done = CliRunner().invoke(main, [str(file)])
    assert done.exit_code == 2
    assert "no proposals of a drafter" in done.output
