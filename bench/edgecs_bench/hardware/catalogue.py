"""Hardware profiles for simulation: measured call times, or a roofline model.

A profile file is JSON:

    {"format": "edgecs-hardware/1", "name": NAME, "note": TEXT, "source": TEXT,
     "targets": [{"model": NAME, "ms": {WIDTH: ms}, "overhead_ms": ms,
                  "settling_ms": ms, "parameters": N, "bytes": N, "depth": N,
                  "deep": [{"depth": N, "ms": {WIDTH: ms}}]}],
     "drafters": [{"name": NAME, "ms": {WIDTH: ms}, "reading_ms": ms}]}

ms has the milliseconds of a call by its number of tokens, for 1 and at least one wider
width; overhead_ms is the time of edgecs per round outside the calls; reading_ms is the
time of a drafter per token of a prompt. settling_ms (the time that a wider call adds to
the next call of one token), parameters, bytes, depth (tokens in the cache during the
measurement), deep (times at other depths) and drafters are optional. Instead of targets
a profile can have

     "roofline": {"gb_per_s": X, "tflops": X, "launch_ms": ms, "overhead_ms": ms,
                  "sources": {FIELD: the source of the number, or "assumed"}}

which gives the times of a model of any size.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from edgecs.core.reading import read_given
from edgecs.core.reading import reason as reason_of
from edgecs.errors import ConfigError
from edgecs_bench.hardware import llama_bench
from edgecs_bench.hardware.curves import LARGE
from edgecs_bench.hardware.machines import Deep, Drafter, Hardware, Roofline, Target

T = TypeVar("T")

FORMAT = "edgecs-hardware/1"
PROFILES = Path(__file__).parents[1] / "data" / "profiles"
_LARGEST = 16 << 20  # bytes of a file
_WIDEST = 1 << 16  # tokens in a call
_FASTEST, _SLOWEST = 1e-4, 1e7  # bounds for milliseconds of a call
_SHORT, _SHOWN = 40, 200  # characters of a value and of a reason in a message
_INLINE = re.compile(r"([\d.]+):([\d.]+)(?::([\d.]+))?", re.A)


def export(
    name: str,
    targets: Sequence[Target],
    drafters: Sequence[Drafter] = (),
    *,
    note: str = "",
    source: str = "measured",
) -> dict[str, Any]:
    """The fields of a profile file with measured times; `read` parses them."""
    return {
        "format": FORMAT,
        "name": name,
        "note": note,
        "source": source,
        "targets": [_written(target) for target in targets],
        "drafters": [{**vars(one), "ms": _named(one.ms)} for one in drafters],
    }


def _written(target: Target) -> dict[str, Any]:
    deep = [{"depth": there.depth, "ms": _named(there.ms)} for there in target.deep]
    return {**vars(target), "ms": _named(target.ms), "deep": deep}


def _named(ms: Mapping[int, float]) -> dict[str, float]:
    return {str(width): time for width, time in ms.items()}


def find(text: str) -> Hardware:
    """Hardware by name, as GB/s:TFLOPS[:ms a call], or from a file.

    Raises ConfigError.
    """
    if text in built_in():
        return read(PROFILES / f"{text}.json")
    if found := _INLINE.fullmatch(text):
        fields = zip(("gb_per_s", "tflops", "launch_ms"), found.groups(), strict=True)
        try:
            given = {name: float(value) for name, value in fields if value}
            return Hardware(text, "", "given", roofline=_roofline(given))
        except ValueError as error:
            raise ConfigError(f"{text} is not a roofline: {error}") from error
    if not os.path.exists(text):  # and no error for what cannot be a path
        raise ConfigError(
            f"unknown hardware {text!r}: give {', '.join(built_in())}, "
            "GB/s:TFLOPS[:ms per call], or a file"
        )
    return read(Path(text))


def built_in() -> list[str]:
    """Names of the examples that come with edgecs."""
    return sorted(path.stem for path in PROFILES.glob("*.json"))


def read(path: Path) -> Hardware:
    """Loads a profile, or json or jsonl of llama-bench; raises ConfigError."""
    return load(path, _hardware, "neither a hardware profile nor output of llama-bench")


def load(path: Path, read: Callable[[Any, str], T], what: str) -> T:
    """Calls `read` with the JSON of a file and its name; raises ConfigError."""
    try:
        text = read_given(path, _LARGEST)
        return read(llama_bench.parse(text.decode("utf-8")), path.stem)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {reason_of(error)}") from error
    except KeyError as error:
        reason = f"{error} is missing"
    except RecursionError:
        reason = "its nesting is too deep"
    except (ValueError, TypeError, OverflowError) as error:
        reason = " ".join(str(error).split())[:_SHOWN]
    raise ConfigError(f"{path} is {what}: {reason} (see docs/simulate.md)")


def _hardware(fields: Any, name: str) -> Hardware:
    if llama_bench.is_output(fields):
        fields = llama_bench.profile(fields, name)
    if members(fields, "the file").get("format") != FORMAT:
        raise ValueError(f"its format is not {FORMAT}")
    line = fields.get("roofline")
    found = Hardware(
        _text(fields["name"]),
        _text(fields.get("note", "")),
        _text(fields["source"]),
        tuple(map(_target, _list(fields.get("targets", [])))),
        tuple(map(read_drafter, _list(fields.get("drafters", [])))),
        _roofline(line) if line is not None else None,
    )
    if bool(found.targets) == bool(found.roofline):
        raise ValueError("it needs targets or a roofline, and not both")
    return found


def _target(fields: Any) -> Target:
    fields = members(fields, "a target")
    size = {
        key: number(fields[key], key)
        for key in ("parameters", "bytes")
        if fields.get(key) is not None
    }
    depth = int(number(fields.get("depth", 0), "depth", 0))
    return Target(
        _text(fields["model"]),
        times(fields["ms"]),
        time(fields["overhead_ms"], "overhead_ms"),
        **size,
        depth=depth,
        settling_ms=time(fields.get("settling_ms", 0), "settling_ms"),
        deep=read_deep(fields.get("deep", []), depth),
    )


def read_deep(value: Any, depth: int) -> tuple[Deep, ...]:
    """Times at increasing depths above `depth`; ValueError for anything else."""
    found = []
    for one in _list(value, "deep must be a list"):
        fields = members(one, "an entry of deep")
        depth = int(number(fields["depth"], "deep's depth", depth + 1))
        found.append(Deep(depth, times(fields["ms"])))
    return tuple(found)


def read_drafter(fields: Any) -> Drafter:
    """A drafter of a profile; ValueError or KeyError for anything else."""
    fields = members(fields, "a drafter")
    reading = time(fields["reading_ms"], "reading_ms")
    return Drafter(_text(fields["name"]), times(fields["ms"]), reading)


def _roofline(fields: Any) -> Roofline:
    fields = members(fields, "a roofline")
    sources = members(fields.get("sources", {}), "sources")
    return Roofline(
        number(fields["gb_per_s"], "gb_per_s"),
        number(fields["tflops"], "tflops"),
        time(fields.get("launch_ms", 0), "launch_ms"),
        time(fields.get("overhead_ms", LARGE), "overhead_ms"),
        {_text(key): _text(value) for key, value in sources.items()},
    )


def times(fields: Any) -> dict[int, float]:
    """Milliseconds by width; ValueError for anything else."""
    by_width = members(fields, "ms")
    found = {
        int(n): number(ms, f"ms of width {n}", _FASTEST, _SLOWEST)
        for n, ms in by_width.items()
    }
    if len(found) < 2 or min(found) != 1 or max(found) > _WIDEST:
        raise ValueError(f"ms needs width 1 and another width of at most {_WIDEST}")
    return dict(sorted(found.items()))


def number(value: Any, what: str, least: float = 1e-9, most: float = 1e15) -> float:
    """A number in a range; ValueError for anything else."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and least <= value <= most:
        return float(value)
    got = str(value)[:_SHORT]
    raise ValueError(f"{what} must be a number from {least:g} to {most:g}, got {got}")


def time(value: Any, what: str) -> float:
    """Milliseconds, or 0; ValueError for anything else."""
    return number(value, what, 0, _SLOWEST)


def members(value: Any, what: str) -> dict[str, Any]:
    """A JSON object; ValueError for anything else."""
    if not isinstance(value, dict):
        raise ValueError(f"{what} must be an object, got {str(value)[:_SHORT]}")
    return value


def _list(value: Any, what: str = "targets and drafters must be lists") -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{what}, got {str(value)[:_SHORT]}")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.isprintable():
        raise ValueError(
            f"a name or note must be one line of text, got {str(value)[:_SHORT]!r}"
        )
    return value
