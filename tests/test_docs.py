"""Documents cannot drift: every command has help, an example and its page."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from edgecs import errors
from edgecs_cli.app import COMMANDS, cli
from edgecs_cli.options.sections import Section
from edgecs_cli.options.shared import READER_GONE
from edgecs_cli.running import EXIT_CODES

ROOT = Path(__file__).parent.parent


def commands(
    group: click.Group = cli, path: str = "edgecs"
) -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield f"{path} {name}", command
        if isinstance(command, click.Group):
            yield from commands(command, f"{path} {name}")


@pytest.mark.parametrize(("path", "command"), list(commands()))
def test_every_command_has_help_with_an_example(path: str, command: click.Command):
    assert command.help
    assert re.search(rf"^ *{path}", command.help, re.M), "an example is missing"
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter
    assert f"## `{path}`" in (ROOT / "docs" / "cli.md").read_text()


SECTIONED = ("generate", "chat", "tune", "bench", "audit", "distill")


@pytest.mark.parametrize("name", SECTIONED)
def test_help_has_every_option_once_and_under_a_heading(name: str):
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    context = click.Context(command, terminal_width=80, **cli.context_settings)
    text = command.get_help(context)
    headings = re.findall(r"^(\w+):$", text, re.M)
    ours = [heading for heading in headings if heading != "Commands"]
    assert ours == [section.value for section in Section if section.value in ours]
    assert {"Basics", "Hardware"} <= {*ours}
    rows = [re.split(" {2,}", line.strip())[0] for line in text.splitlines()]
    for option in command.get_params(context):
        record = option.get_help_record(context)
        assert record
        assert rows.count(record[0]) == 1, option
    assert ("Commands" in headings) == isinstance(command, click.Group)
    assert max(map(len, text.splitlines())) <= 90


def test_the_summary_of_a_command_is_the_first_line_of_its_help():
    context = click.Context(cli)
    for name, entry in COMMANDS.items():
        command = cli.get_command(context, name)
        assert command is not None
        assert command.get_short_help_str(100) == entry.summary


def test_every_exit_code_is_documented():
    codes = {e.exit_code for e in vars(errors).values() if hasattr(e, "exit_code")}
    signals = {128 + n for n in (signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM)}
    assert codes | {0, READER_GONE} | signals == set(EXIT_CODES)


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


def test_links_lead_somewhere():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), (page, target)


def test_the_modules_that_the_architecture_names_exist():
    text = (ROOT / "docs" / "architecture.md").read_text()
    named = re.findall(r"`([a-z_]+(?:/[a-z_]+)+)(?:: (\w+))?`", text)
    assert len(named) > 10
    for path, name in named:
        module = ROOT / "edgecs" / f"{path}.py"
        assert module.exists() or (not name and module.with_suffix("").is_dir()), path
        assert not name or re.search(
            rf"^(class|def) {name}\b", module.read_text(), re.M
        )
