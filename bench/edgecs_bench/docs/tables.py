"""Tables of the documentation, generated from the raw numbers in bench/results/.

The files there are output of `edgecs bench --output`, `edgecs audit --json` and the
other benchmarks; cog inserts the tables into the documents.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import reduce
from operator import getitem
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

from edgecs_bench.busy import STATES
from edgecs_bench.hardware.catalogue import load
from edgecs_bench.run.result import Result, read
from edgecs_bench.simulation.chains import Chain
from edgecs_bench.simulation.simulation import Simulation, against, choose, compared
from edgecs_bench.simulation.traces import read_traces
from edgecs_bench.text_tables import markdown

_CALLS = ("4", "8")  # widths of the calls that are shown
_FIDELITY = {  # columns: their field and format
    "same best token": ("agreement", ".1%"),
    "perplexity over": ("perplexity_ratio", ".4f"),
    "largest difference": ("largest", ".2f"),
}


def speed_overview(files: Iterable[Path], temperature: float = 0.0) -> str:
    """Speed-ups of the planner by model and category, one row per model.

    They are over the faster of plain decoding and llama.cpp's own loop.
    """
    results = list(_results(files))
    planned = [_rows(result, "planner", temperature) for result in results]
    categories = list(dict.fromkeys(name for rows in planned for name in rows))
    lines = []
    for result, rows in zip(results, planned, strict=True):
        scale, mean = _scale(result), _overall(result, "planner", temperature)
        ratios = [rows[n]["speedup"] if n in rows else None for n in categories]
        low, high = (x / scale for x in mean["interval"])
        lines.append(
            [
                result["model"]["name"],
                _processor(result),
                _plain(result, temperature),
                *(_ratio(ratio, scale) for ratio in ratios),
                f"**{_ratio(mean['geomean'], scale)}** ({low:.2f}-{high:.2f})",
            ]
        )
    heads = [name.replace("_", " ") for name in categories]
    titles = ["model", "processor", "plain, tok/s"]
    return markdown([[*titles, *heads, "geometric mean (90 %)"], *lines])


def peers_overview(files: Iterable[Path], temperature: float = 0.0) -> str:
    """Every mode of every model, relative to plain decoding in the same blocks.

    A fork is an answer that differs from edgecs' plain decoding. A mode without
    answers shows its error instead.
    """
    lines = []
    for result in _results(files):
        name = result["model"]["name"]
        for one in result["overall"]:
            rows = _rows(result, one["mode"], temperature).values()
            if one["mode"] == "plain" or one["temperature"] != temperature or not rows:
                continue
            low, high = one["interval"]
            # With one prompt per category there is no spread.
            spread = f" ({low:.2f}-{high:.2f})" if low < high else ""
            worst = one["worst"]
            slowest = f"{worst['speedup']:.2f} ({worst['category'].replace('_', ' ')})"
            answers = sum(row["identical"] + row["forks"] for row in rows)
            lines.append(
                [
                    name,
                    one["mode"],
                    f"{one['geomean']:.2f}{spread}",
                    slowest,
                    _ratio(one["end_to_end"]),
                    f"{sum(row['forks'] for row in rows)} of {answers}",
                ]
            )
        answered = {answer["mode"] for answer in result["answers"]}
        for mode in result["modes"]:
            if mode["name"] not in answered:
                error = mode.get("error", "no answer")
                lines.append([name, mode["name"], f"failed: {error}", *"---"])
    heads = ["model", "mode", "over plain (90 %)", "worst category", "end to end"]
    return markdown([[*heads, "answers that fork"], *lines])


def drafters_overview(file: Path) -> str:
    """Output of `edgecs_bench.drafters`, one row per drafter and temperature."""
    lines = []
    for text in file.read_text(encoding="utf-8").splitlines():
        told = json.loads(text)
        for row in told["rows"]:
            ms, name = row["ms_a_token"], row["drafter"]
            size = told["bytes"].get(name)
            lines.append(
                [
                    ", ".join(told["suites"]),
                    f"{row['temperature']:g}",
                    name,
                    " / ".join(f"{share:.2f}" for share in row["right"]),
                    f"{ms:.2f}" if ms else "-",
                    f"{size / (1 << 20):.1f}" if size else "-",
                ]
            )
    heads = ["prompts", "temp", "drafter", "first 1 / 2 / 3 right", "ms a token", "MiB"]
    return markdown([heads, *lines])


def huge_pages(file: Path) -> str:
    """Output of `edgecs_bench.huge`: a token's time relative to small pages.

    There is one row per model and depth.
    """
    lines = []
    for text in file.read_text(encoding="utf-8").splitlines():
        told = json.loads(text)
        small, huge, read = (
            told["ms"][way] for way in ("--no-huge-pages", "huge pages", "--no-mmap")
        )
        for i, depth in enumerate(told["depths"]):
            shares = (f"{ms[i] / small[i]:.2f}" for ms in (huge, read))
            lines.append([told["model"], str(depth), f"{small[i]:.1f}", *shares])
    heads = ["model", "depth", "small pages, ms", "huge pages", "and --no-mmap"]
    return markdown([heads, *lines])


def loadings(file: Path) -> str:
    """Output of `edgecs_bench.loading`, two rows per model."""
    lines = []
    for text in file.read_text(encoding="utf-8").splitlines():
        told = json.loads(text)
        for way, row in told["medians"].items():
            whose = {"own": "edgecs's", "llama": "llama.cpp's"}[way]
            seconds = (f"{row[name]:.1f}" for name in ("program_s", "system_s"))
            sizes = (f"{row[name]:,.0f}" for name in ("own_mib", "file_mib"))
            lines.append([told["model"], whose, *seconds, *sizes])
    heads = ["model", "kernels", "in the program, s", "in the system, s"]
    return markdown([[*heads, "own memory, MiB", "of the file, MiB"], *lines])


def kernel_calls(file: Path) -> str:
    """Output of `edgecs_bench.kernels`, one row per model and set of kernels.

    Two figures in a cell are those at a small and at a large depth.
    """
    lines = []
    for text in file.read_text(encoding="utf-8").splitlines():
        told = json.loads(text)
        deep = list(told["ms"])

        def pair(of: Mapping[str, Any], *keys: str, deep: list[str] = deep) -> str:
            found = (reduce(getitem, keys, of[depth]) for depth in deep)
            return ", ".join(f"{value:.2f}" for value in found)

        exact = min(len(widths) for widths in told["identical_widths"].values())
        lines.append(
            [
                told["model"],
                told["kernels"],
                pair(told["plain_over_llama"]),
                *(pair(told["ratio"], width) for width in _CALLS),
                *(pair(told["llama_ratio"], width) for width in _CALLS),
                f"{told['prompt_over_llama']:.1f}",
                pair(told["bandwidth"], "share").split(",")[0],
                "all" if exact == len(told["ratio"][deep[0]]) - 1 else f"{exact}",
            ]
        )
    ours, theirs = (
        [f"{width} tokens{who}" for width in _CALLS] for who in ("", ", llama.cpp")
    )
    heads = ["model", "kernels", "plain", *ours, *theirs, "prompt", "of memory"]
    return markdown([[*heads, "exact widths"], *lines])


def fidelities(file: Path) -> str:
    """Output of `edgecs audit --compare-kernels --json`, one row per model."""
    lines = []
    for text in file.read_text(encoding="utf-8").splitlines():
        told = json.loads(text)
        cells = [
            f"{told[who][name]:{form}}"
            for name, form in _FIDELITY.values()
            for who in ("own", "llama_not_repacked")
        ]
        name = told["model"].removesuffix(".gguf")
        lines.append([name, f"{told['own']['tokens']:,}", *cells])
    heads = [f"{title}{who}" for title in _FIDELITY for who in ("", " (llama.cpp)")]
    return markdown([["model", "tokens", *heads], *lines])


def over_llama(files: Iterable[Path], temperature: float = 0.0) -> str:
    """Plain decoding and the planner over llama.cpp's own loop, one row per model."""
    results = list(_results(files))
    modes = [
        [_rows(result, mode, temperature) for mode in ("llama", "planner")]
        for result in results
    ]
    categories = list(dict.fromkeys(name for _, rows in modes for name in rows))
    lines = []
    for result, (llama, planner) in zip(results, modes, strict=True):
        base, mean = (
            _overall(result, mode, temperature) for mode in ("llama", "planner")
        )
        scale = base["geomean"]
        ratios = (
            planner[name]["speedup"] / llama[name]["speedup"]
            if name in planner and name in llama
            else None
            for name in categories
        )
        low, high = mean["interval"]
        lines.append(
            [
                _with_quantisation(result["model"]["name"]),
                _speeds(llama.values()),
                f"{1 / scale:.2f}",
                f"**{mean['geomean'] / scale:.2f}**",
                *map(_ratio, ratios),
                f"{mean['geomean']:.2f} ({low:.2f}-{high:.2f})",
            ]
        )
    heads = ["model", "llama.cpp, tok/s", "plain", "planned"]
    names = [name.replace("_", " ") for name in categories]
    return markdown([[*heads, *names, "planned over plain (90 %)"], *lines])


def _with_quantisation(name: str) -> str:
    """The name of a GGUF file as that of a model and its quantisation.

    >>> _with_quantisation("SmolLM2-135M-Instruct.Q4_1")
    'smollm2-135m-instruct Q4_1'
    """
    *parts, last = re.split(r"[-.](?=[^-.]+$)", name.lower())
    return f"{'-'.join(parts)} {last.upper()}" if parts else name


def busy(file: Path) -> str:
    """Output of `edgecs_bench.busy`: median tokens/s by model and configuration."""
    lines = []
    for text in file.read_text(encoding="utf-8").splitlines():
        told = json.loads(text)
        for way, rows in told["every"].items():
            idle, beside = (median(r[state] for r in rows) for state in STATES)
            speeds = [f"{idle:.1f}", f"{beside:.1f}", f"{beside / idle:.2f}"]
            lines.append([told["model"], str(told["hogs"]), f"`{way}`", *speeds])
    heads = ["model", "programs", "threads", "alone", "beside", "share left"]
    return markdown([heads, *lines])


def first_tokens(files: Iterable[Path], least: int = 500) -> str:
    """Times to the first token relative to llama.cpp's own loop, one row per model.

    least: minimum tokens of a prompt.
    """
    lines = []
    for result in _results(files):
        waits: dict[str, dict[str, float]] = {}
        for answer in result["answers"]:
            if answer["prompt_tokens"] >= least and not answer["temperature"]:
                modes = waits.setdefault(answer["id"], {})
                modes[answer["mode"]] = answer["ttft_ms"]
        pairs = [one for one in waits.values() if one.get("llama")]
        cells = []
        for mode in ("plain", "planner"):
            ratios = [one[mode] / one["llama"] for one in pairs if one.get(mode)]
            if ratios:
                span = f"{min(ratios):.3f}-{max(ratios):.3f}"
                cells.append(f"{geometric_mean(ratios):.3f} ({span})")
        if len(cells) == 2:
            name = result["model"]["name"]
            lines.append([name, _processor(result), len(pairs), *cells])
    return markdown([["model", "processor", "prompts", "plain", "planner"], *lines])


def predictions(files: Sequence[Path]) -> str:
    """Predictions of benches from their costs alone, one row per chain.

    files: results; the traces of the same prompts are beside them as `.jsonl.gz`.
    """
    rows = [row for file in files for row in _predicted(file)]
    return markdown([["target", "chain", "simulated", "measured", "error"], *rows])


def _predicted(file: Path) -> list[list[str]]:
    recorded = read_traces(file.with_suffix(".jsonl.gz"))
    known = load(file, against, "no result to predict")
    chains = [Chain.parse(label) for label in known.speedups]
    chosen = choose([recorded], chains, None, known.prompts)
    (aim,) = known.machine.targets
    played = Simulation(chosen, chains, learns=False).rows(known.machine, aim)
    return [
        [
            recorded.target,
            row["chain"],
            f"{row['predicted']:.2f}",
            f"{row['measured']:.2f}",
            f"{row['error']:+.1%}",
        ]
        for row in compared(played, known.speedups)
    ]


def audits(files: Iterable[Path]) -> str:
    """Results of audits, one row per file, in their order."""
    rows = []
    for run in map(_read, files):
        forks: Counter[str] = Counter()
        tokens: Counter[str] = Counter()
        for one in run["runs"]:
            tokens.update(one["tokens_by_tier"])
            forks.update(fork["tier"] for fork in one["forks"])
        rates = (f"{t} {1000 * forks[t] / n:.2f}" for t, n in sorted(tokens.items()))
        answers = sum(one["answers"] for one in run["runs"])
        same = sum(one["identical"] for one in run["runs"])
        rows.append(
            [
                run["model"].removesuffix(".gguf"),
                run["exact"],
                run["options"]["type_k"],
                f"{run['sampling']['temperature']:g}",
                f"{same} of {answers}",
                f"{sum(tokens.values()):,}",
                ", ".join(rates),
                "**yes**" if run["strict_broken"] else "no",
            ]
        )
    heads = ["model", "asked for", "KV", "temp", "identical answers", "tokens"]
    return markdown([[*heads, "forks per 1,000 by tier", "strict broken"], *rows])


def _results(files: Iterable[Path]) -> Iterator[Result]:
    for file in files:
        yield from read(file)


def _read(file: Path) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return fields


def _processor(result: Result) -> str:
    """The processor's name, and whether llama.cpp was built for AMX."""
    name: str = result["machine"]["processor"]
    amx = "AMX_INT8 = 1" in (result["build"]["system_info"] or "")
    return f"{name} (AMX)" if amx else name


def _rows(result: Result, mode: str, temperature: float) -> dict[str, dict[str, Any]]:
    """The rows of one mode at one temperature by category."""
    return {
        row["category"]: row
        for row in result["rows"]
        if (row["mode"], row["temperature"]) == (mode, temperature)
    }


def _overall(result: Result, mode: str, temperature: float) -> dict[str, Any]:
    nothing = {"geomean": None, "interval": [float("nan")] * 2}
    for row in result["overall"]:
        if (row["mode"], row["temperature"]) == (mode, temperature):
            found: dict[str, Any] = row
            return found
    return nothing


def _over_llama(result: Result) -> float | None:
    """The speed of llama.cpp's own loop relative to edgecs without drafts."""
    found: float | None = _overall(result, "llama", 0.0)["geomean"]
    return found


def _scale(result: Result) -> float:
    """The speed of the baseline, the faster of the two, relative to plain decoding."""
    return max(1.0, _over_llama(result) or 1.0)


def _plain(result: Result, temperature: float) -> str:
    """Tokens per second of plain decoding, of the slowest and the fastest category."""
    return _speeds(_rows(result, "plain", temperature).values())


def _speeds(rows: Iterable[Mapping[str, Any]]) -> str:
    speeds = [row["speed"] for row in rows if row["speed"]]
    return f"{min(speeds):.0f}-{max(speeds):.0f}" if speeds else "-"


def _ratio(value: float | None, scale: float = 1.0) -> str:
    return "-" if value is None else f"{value / scale:.2f}"
