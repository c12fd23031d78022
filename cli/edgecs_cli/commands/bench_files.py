"""Subcommands of `edgecs bench` on result files: compare, merge, report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgecs_cli.console import echo, say
from edgecs_cli.options.kinds import PAGE, RESULT, OutputFile
from edgecs_cli.options.shared import reports_errors


@click.command()
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@reports_errors
def compare(a: Path, b: Path, as_json: bool) -> None:
    """Compare two results.

    Prints differences in the setup, both speeds, and whether the intervals of the
    speed-ups overlap. The exit code does not depend on performance.

    \b
    edgecs bench compare before.json after.json
    """
    from edgecs_bench.report.comparison import show
    from edgecs_bench.run.result import read

    echo(show(read(a), read(b), as_json=as_json), nl=False)


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=OutputFile(*RESULT), required=True, help="The file to write."
)
@reports_errors
def merge(files: tuple[Path, ...], output: Path) -> None:
    """Merge results of several models or machines into one file.

    \b
    edgecs bench merge laptop.json desktop.json -o all.json
    """
    from edgecs_bench.run.result import merge as merged
    from edgecs_bench.run.result import overview, read, write

    results = [result for file in files for result in read(file)]
    write(output, merged(results))
    echo(overview(results), nl=False)


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=OutputFile(PAGE),
    required=True,
    help="The HTML file to write.",
)
@click.option(
    "--charts",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Also write the charts to this folder, as PNG and SVG files.",
)
@reports_errors
def report(files: tuple[Path, ...], output: Path, folder: Path | None) -> None:
    """Write results as one HTML page that needs no network.

    Charts need the extra `plot`.

    \b
    edgecs bench report run.json -o run.html --charts charts/
    """
    from edgecs_bench.run.result import read

    results = [result for file in files for result in read(file)]
    write_page(output, results)
    if folder:
        _write_charts(folder, results)


def write_page(path: Path, results: list[dict[str, Any]]) -> None:
    """Writes results as one HTML page."""
    from edgecs_bench.report.page import render
    from edgecs_bench.run.result import write_text

    write_text(path, render(results))
    say(f"written: {path}")


def _write_charts(folder: Path, results: list[dict[str, Any]]) -> None:
    from edgecs_bench.report.charts import save_charts

    for result in results:
        name = result["model"]["name"] if len(results) > 1 else ""
        save_charts(result, folder / name)
    say(f"written: {folder}")


COMMANDS = (compare, merge, report)
