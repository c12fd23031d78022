"""The rooms of the house: which modules each has, and which rooms it imports.

    python -m tests.rooms

prints a line for each room, how many arrows there are between rooms, and any circle.
"""

from __future__ import annotations

import ast
import signal
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDERS = {
    "edgecs": ROOT / "edgecs",
    "edgecs_cli": ROOT / "cli" / "edgecs_cli",
    "edgecs_bench": ROOT / "bench" / "edgecs_bench",
    "edgecs_convert": ROOT / "convert" / "edgecs_convert",
    "edgecs_models": ROOT / "models" / "edgecs_models",
}
"""Packages and their folders."""


def sources(package: str) -> list[Path]:
    """The modules of a package."""
    return sorted(FOLDERS[package].rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Every module named in an import; those under TYPE_CHECKING too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{a.name}" for a in node.names}
    return found


def room(path: Path) -> str:
    """The room of a module: `edgecs.engines.llama.model` is in `engines`.

    A module that lies in no room is a room of its own.
    """
    for folder in FOLDERS.values():
        if path.is_relative_to(folder):
            return path.relative_to(folder).parts[0].removesuffix(".py")
    raise ValueError(path)


def rooms(package: str) -> dict[str, set[str]]:
    """Each room of a package, and the rooms that it imports."""
    found: dict[str, set[str]] = {}
    for path in sources(package):
        if path.parent == FOLDERS[package] and path.stem.startswith("__"):
            continue  # the front door and `python -m`
        here = found.setdefault(room(path), set())
        here |= {
            name.split(".")[1]
            for name in imports(path)
            if name.startswith(f"{package}.")
        } - {room(path)}
    # `from edgecs import errors` names a room, `from edgecs import Session` does not.
    return {
        name: {other for other in to if other in found} for name, to in found.items()
    }


def floors(package: str) -> Iterator[list[str]]:
    """The rooms from the ground up; raises graphlib.CycleError where they circle."""
    sorter = TopologicalSorter(rooms(package))
    sorter.prepare()
    while ready := sorter.get_ready():
        yield sorted(ready)
        sorter.done(*ready)


def listing() -> str:
    """Every room in Markdown, with its modules and what each is for."""
    lines = list[str]()
    for package in FOLDERS:
        for name in dict.fromkeys(room(path) for path in sources(package)):
            if not name.startswith("__"):
                lines += _described(package, name)
    return "\n".join(lines)


def _described(package: str, name: str) -> list[str]:
    paths = [path for path in sources(package) if room(path) == name]
    title = f"{package}.{name}"
    if len(paths) == 1:  # a module in no room
        return [f"**`{title}`**: {_first_line(paths[0])}", ""]
    folder = FOLDERS[package] / name
    about = _first_line(folder / "__init__.py")
    items = [
        f"- `{'.'.join(path.relative_to(folder).with_suffix('').parts)}`: "
        f"{_first_line(path)}"
        for path in paths
        if path.stem != "__init__"
    ]
    return [f"**`{title}`**: {about}", "", *items, ""]


def _first_line(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    return docstring.partition("\n")[0] if docstring else ""


def picture() -> str:
    """The floors of the library as boxes, the highest one on top: an SVG."""
    rows = [*floors("edgecs")][::-1]
    parts = list[str]()
    for i, names in enumerate(rows):
        width = 700 / len(names)
        for j, name in enumerate(names):
            x, y = 10 + j * width, 10 + i * 44
            parts.append(
                f'<rect x="{x:.0f}" y="{y}" width="{width - 8:.0f}" height="34" rx="4" '
                f'fill="#546e7a"/><text x="{x + width / 2 - 4:.0f}" y="{y + 22}" '
                f'text-anchor="middle" fill="#fff">{name}</text>'
            )
    height = 20 + 44 * len(rows)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 712 {height}" '
        f'width="712" height="{height}" role="img" font-family="system-ui, sans-serif" '
        'font-size="13"><title>The rooms of edgecs: each imports rooms below it</title>'
        + "\n".join(parts)
        + "</svg>"
    )


def main() -> None:
    """Prints the rooms of every package."""
    for package in FOLDERS:
        arrows = rooms(package)
        sizes = [room(path) for path in sources(package)]
        count = sum(map(len, arrows.values()))
        print(f"{package}: {len(arrows)} rooms, {count} arrows between them")
        try:
            for i, floor in enumerate(floors(package)):
                for name in floor:
                    to = " ".join(sorted(arrows[name])) or "-"
                    print(f"  {i}  {name:16} {sizes.count(name):3} modules <- {to}")
        except CycleError as error:
            print(f"  a circle: {' <- '.join(error.args[1])}")


if __name__ == "__main__":
    if hasattr(signal, "SIGPIPE"):  # `| head` ends it as it ends cat
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    main()
