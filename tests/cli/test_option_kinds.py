"""Wrong numbers are one sentence, in the same form for all options."""

from __future__ import annotations

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecs_cli.app import cli
from edgecs_cli.options.kinds import AnyFinite, AnyWhole, Finite, Whole

OURS = (AnyFinite, AnyWhole, Finite, Whole)


def numbers() -> list[tuple[click.Parameter, click.ParamType]]:
    """Every number that an option of any command takes, by its option."""
    found = list[tuple[click.Parameter, click.ParamType]]()
    context = click.Context(cli)
    groups: list[click.Group] = [cli]
    while groups:
        group = groups.pop()
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            assert command is not None
            if isinstance(command, click.Group):
                groups.append(command)
            for param in command.params:
                kinds = getattr(param.type, "types", [param.type])
                bases = click.types.IntParamType, click.types.FloatParamType
                found += [(param, kind) for kind in kinds if isinstance(kind, bases)]
    return found


def test_all_numbers_have_a_kind_of_edgecs():
    found = numbers()
    assert len(found) > 40
    others = [param.opts for param, kind in found if not isinstance(kind, OURS)]
    assert others == []


@given(st.text(max_size=100))
def test_a_wrong_number_is_one_sentence(text: str):
    for param, kind in numbers()[::7]:
        try:
            kind.convert(text, param, None)
        except click.BadParameter as error:
            said = error.format_message()
            assert said.startswith(f"{'/'.join(param.opts)} must be a ")
            assert "number" in said
            assert "Invalid value" not in said
            assert repr(text)[:80] in said


@pytest.mark.parametrize(
    ("kind", "value", "says"),
    [
        (AnyWhole(), "x", "a whole number, got 'x'"),
        (Whole(-1), "-2", "a whole number of at least -1, got '-2'"),
        (Whole(None, 9), "10", "a whole number of at most 9, got '10'"),
        (Whole(1, 2**64 - 1), "0", f"a whole number from 1 to {2**64 - 1}, got '0'"),
        (AnyFinite(), "inf", "a finite number, got 'inf'"),
        (Finite(0, 1), "nan", "a finite number from 0 to 1, got 'nan'"),
        (Finite(0, min_open=True), 0, "a finite number greater than 0, got 0"),
        (
            Finite(0, 1, max_open=True),
            "1",
            "a finite number of at least 0 and less than 1, got '1'",
        ),
        (Finite(1.5e-3), "0", "a finite number of at least 0.0015, got '0'"),
    ],
)
def test_the_range_is_told(kind: click.ParamType, value: object, says: str):
    with pytest.raises(click.BadParameter) as caught:
        kind.convert(value, None, None)
    assert caught.value.format_message() == f"must be {says}"
