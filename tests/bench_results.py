"""A made-up result of `edgecs bench` with everything that its schema allows."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from statistics import geometric_mean
from typing import Any

import edgecs_bench

SCHEMA: dict[str, Any] = json.loads(
    Path(edgecs_bench.__file__)
    .with_name("data")
    .joinpath("schema")
    .joinpath("edgecs-bench-1.json")
    .read_text()
)
FIXED = ("edgecs-bench/1", "mains", "plain")  # texts that have a meaning

GAINS = {
    "code": 1.62,
    "qa": 1.08,
    "rag": 1.31,
    "summarization": 1.44,
    "math_reasoning": 1.02,
    "writing": 0.99,
}
CATEGORIES = tuple(GAINS)
MODES = {"plain": 1.0, "always 10": 0.8, "planner": 1.0, "llama.cpp": 0.95}
SOURCES = ("max-gram", "smol-4l")
PREDICT, ROUND_MS = 128, 36.0
TEXT = (
    "def median(values):\n",
    "    ordered = sorted(values)\n",
    "    middle = len(ordered) // 2\n",
    "    if len(ordered) % 2:\n        return ordered[middle]\n",
    "    return (ordered[middle - 1] + ordered[middle]) / 2\n\n",
    "The function sorts the values first, ",
    "so that the middle one can be taken. ",
)


def made(
    seed: int = 0,
    temperatures: tuple[float, ...] = (0.0, 0.8),
    prompts: int = 8,
    categories: int = len(CATEGORIES),
) -> dict[str, Any]:
    """A whole result; the same for the same numbers."""
    random = Random(seed)
    names = CATEGORIES[:categories]
    answers = [
        _answer(random, block, names[block // prompts], mode, temperature)
        for temperature in temperatures
        for block in range(len(names) * prompts)
        for mode in MODES
    ]
    keys = [(c, t) for t in temperatures for c in names]
    rows = [_row(answers, c, m, t) for c, t in keys for m in MODES]
    return {
        "format": "edgecs-bench/1",
        "created": "2026-11-24T03:12:45Z",
        "edgecs": "0.1.0",
        "command": [
            "edgecs",
            "bench",
            "-m",
            "qwen2.5-coder-1.5b",
            "--report",
            "r.html",
        ],
        "machine": {
            "id": "5b0c4d2f9e",
            "system": "Linux 6.8.0",
            "processor": "AMD EPYC 9R45",
            "cores": 2,
            "memory_gib": 15.6,
            "devices": [],
            "power": "mains",
        },
        "build": {
            "llama_cpp_python": "0.3.36",
            "system_info": "CPU : SSE3 = 1 | AVX = 1 | AVX2 = 1 | AVX512 = 1 | "
            "AVX512_VNNI = 1 | AVX512_BF16 = 1 | LLAMAFILE = 1 | REPACK = 1",
            "onnxruntime": "1.31.0",
            "python": "3.11.7",
        },
        "model": {
            "name": "qwen2.5-coder-1.5b-instruct-q4_0.gguf",
            "fingerprint": "9f2c7c1e5d3b8a60",
            "description": "qwen2 1.5B Q4_0",
            "parameters": 1543714304,
            "bytes": 1066226688,
        },
        "drafters": [
            {
                "name": name,
                "about": "looks the last tokens up" if at == 0 else "4 layers, int8",
                "fingerprint": f"{at}c0ffee",
                "parameters": None if at == 0 else 11_500_000,
            }
            for at, name in enumerate(SOURCES)
        ],
        "options": {
            "n_ctx": 4096,
            "threads": 2,
            "layers": 0,
            "flash_attention": True,
            "type_k": "f16",
            "type_v": "f16",
            "repack": True,
            "exact": "auto",
            "predict": PREDICT,
            "seed": 0,
            "repeats": 5,
        },
        "suite": {
            "names": ["spec-bench"],
            "prompts": len(names) * prompts,
            "sha256": "e3b0c44298fc1c14",
        },
        "modes": [
            {"name": "plain", "about": "one token a call"},
            {"name": "always 10", "about": "Max-Gram, ten tokens whatever they cost"},
            {"name": "planner", "about": "Max-Gram and smol-4l, planned"},
            {"name": "llama.cpp", "about": "ngram-mod", "version": "b7113 (0c1e57098)"},
            {
                "name": "ollama",
                "about": "speculation of its own",
                "error": "it cannot be reached: connection refused (port 11434)",
            },
        ],
        "tests": [_test("pp512", 512, 0, 210.4), _test("tg128", 0, 128, 27.9)],
        "costs": {
            "depth": 256,
            "ms": {
                str(n): 35.7 * ratio
                for n, ratio in zip(
                    (1, 2, 3, 4, 5, 6, 7, 8, 12, 16),
                    (1, 1.56, 2.08, 1.68, 2.26, 2.75, 3.2, 2.89, 3.97, 4.17),
                    strict=True,
                )
            },
            "overhead_ms": 0.21,
            "same": [1, 2, 3, 4, 5, 6],
        },
        "anchors": [
            {"block": block, "ms": round(35.7 + random.gauss(0.3, 0.4), 3)}
            for block in range(len(names) * prompts + 1)
        ],
        "answers": answers,
        "samples": [_sample(random, name) for name in names],
        "rows": rows,
        "overall": [_overall(rows, m, t) for t in temperatures for m in MODES],
        "memory": {"peak_rss_mib": 1874.2},
        "energy": {"source": "rapl"},
        "others": 0.006,
        "pass_at_1": [
            {
                "mode": mode,
                "temperature": 0.0,
                "problems": 164,
                "passed": 113,
                "failed": [
                    ["HumanEval/32", "AssertionError"],
                    ["HumanEval/38", "time"],
                ],
            }
            for mode in ("plain", "planner")
        ],
    }


def thinned(result: Any, random: Random, share: float) -> Any:
    """The same with some of what the schema lets be absent, null or empty gone."""
    return _thinned(result, SCHEMA, random, share)


def _thinned(value: Any, schema: dict[str, Any], random: Random, share: float) -> Any:
    if "$ref" in schema:
        schema = SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]]
    if "null" in schema.get("type", ()) and random.random() < share:
        return None
    if isinstance(value, list) and "prefixItems" not in schema:
        if random.random() < share / 4:
            return []
        return [_thinned(v, schema.get("items", {}), random, share) for v in value]
    if isinstance(value, dict):
        known, needed = schema.get("properties", {}), schema.get("required", value)
        return {
            name: _thinned(part, known.get(name, {}), random, share)
            for name, part in value.items()
            if name in needed or random.random() >= share
        }
    return value


def retold(value: Any, text: str) -> Any:
    """The same with `text` in all names and texts."""
    if isinstance(value, str):
        return value if value in FIXED else f"{text}{value}"
    if isinstance(value, list):
        return [retold(part, text) for part in value]
    if isinstance(value, dict):
        return {
            f"{text}{name}" if name in SOURCES else name: retold(part, text)
            for name, part in value.items()
        }
    return value


def _answer(
    random: Random, block: int, category: str, mode: str, temperature: float
) -> dict[str, Any]:
    gain = MODES[mode]
    if mode != "plain":
        gain *= GAINS[category] * random.gauss(1, 0.04)
    tokens = random.randint(PREDICT // 2, PREDICT)
    told = {
        "category": category,
        "id": str(block),
        "prompt_tokens": random.randint(40, 400),
        "mode": mode,
        "temperature": temperature,
        "repeat": 0,
        "block": block,
        "drifted": block in (13, 14),
        "ttft_ms": 400 + 100 * random.random(),
        "decode_ms": ROUND_MS * (tokens - 1) / gain,
        "tokens": tokens,
        "looping": 12 if block == 20 else 0,
    }
    if mode == "llama.cpp":
        return told | {"rounds": 0, "tested": None, "accepted": None}
    return told | _drafted(random, told, gain)


def _drafted(random: Random, told: dict[str, Any], gain: float) -> dict[str, Any]:
    plain = told["mode"] == "plain"
    accepted = 0 if plain else int(told["tokens"] * min(0.6, max(0.1, gain - 0.7)))
    rounds = told["tokens"] - accepted
    tested = 0 if plain else int(accepted * random.uniform(1.2, 1.6)) + 4
    split = {"max-gram": 2 / 3, "smol-4l": 1 / 3} if not plain else {}
    forked = not plain and random.random() < 0.04
    return {
        "rounds": rounds,
        "tested": tested,
        "accepted": accepted,
        "drafting_ms": 0.0 if plain else 0.9 * rounds,
        "calling_ms": 0.93 * told["decode_ms"],
        "planner_us": None if plain else 68.0,
        "by_position": [
            [int(tested * 0.5**at), int(tested * 0.5**at * 0.8**at)]
            for at in range(1, 7)
            if not plain
        ],
        "by_source": {
            name: {
                "proposed": int(1.5 * tested * share),
                "tested": int(tested * share),
                "accepted": int(accepted * share),
            }
            for name, share in split.items()
        },
        "widths": {"1": rounds // 2, "4": rounds - rounds // 2},
        "tiers": {"strict": told["tokens"] - 9, "numeric": 9},
        "compared": told["tokens"] // 2 if forked else told["tokens"],
        "fork": {"token": told["tokens"] // 2, "width": 8} if forked else None,
        "joules": 0.9 * told["tokens"] / gain,
    }


def _row(
    answers: list[dict[str, Any]], category: str, mode: str, temperature: float
) -> dict[str, Any]:
    key = {"category": category, "mode": mode, "temperature": temperature}
    mine = [a for a in answers if key.items() <= a.items()]
    seconds = sum(a["decode_ms"] for a in mine) / 1e3
    tokens = sum(a["tokens"] for a in mine)
    speed = (tokens - len(mine)) / seconds
    gain = 1.0 if mode == "plain" else speed * ROUND_MS / 1e3
    known = mode != "llama.cpp"
    forks = sum(bool(a.get("fork")) for a in mine)
    accepted = sum(a["accepted"] for a in mine) if known else None
    rounds = sum(a["rounds"] for a in mine)
    return key | {
        "prompts": len(mine),
        "tokens": tokens,
        "speed": round(speed, 4),
        "speedup": round(gain, 4),
        "interval": [round(gain - 0.06, 4), round(gain + 0.07, 4)],
        "spread": [round(gain * x, 4) for x in (0.9, 0.96, 1.0, 1.03, 1.1)],
        "ttft_ms": 441.3,
        "end_to_end": round(gain**0.9, 4),
        "accepted": accepted,
        "tested": sum(a["tested"] for a in mine) if known else None,
        "mean_accept_len": round(tokens / rounds, 4) if rounds else None,
        "tiers": {"numeric": 0.1, "strict": 0.9} if known else {},
        "forks": forks,
        "forks_per_1000": round(1e3 * forks / tokens, 4),
        "identical": len(mine) - forks,
        "looping": 0.01,
        "speedup_without_loops": round(gain, 4),
        "prompts_without_loops": len(mine),
        "joules_per_token": round(0.9 / gain, 4) if known else None,
    }


def _overall(
    rows: list[dict[str, Any]], mode: str, temperature: float
) -> dict[str, Any]:
    mine = [r for r in rows if (r["mode"], r["temperature"]) == (mode, temperature)]
    worst = min(mine, key=lambda row: row["speedup"])
    mean = geometric_mean(row["speedup"] for row in mine)
    return {
        "mode": mode,
        "temperature": temperature,
        "geomean": round(mean, 4),
        "interval": [round(mean - 0.03, 4), round(mean + 0.03, 4)],
        "worst": {"category": worst["category"], "speedup": worst["speedup"]},
        "end_to_end": round(mean**0.9, 4),
        "planner_us": 68.4 if mode == "planner" else None,
    }


def _test(name: str, prompt: int, answer: int, speed: float) -> dict[str, Any]:
    ns = 1e9 * (prompt + answer) / speed
    return {
        "test": name,
        "n_prompt": prompt,
        "n_gen": answer,
        "n_depth": 0,
        "avg_ns": ns,
        "stddev_ns": ns / 100,
        "avg_ts": speed,
        "stddev_ts": speed / 100,
        "samples_ns": [ns] * 5,
        "samples_ts": [speed] * 5,
    }


def _sample(random: Random, category: str) -> dict[str, Any]:
    rounds, at = [], 0.0
    for number in range(60):
        parked = 20 <= number < 32 and category != "code"
        emitted = 1 if parked else random.choice((1, 1, 2, 4))
        at += ROUND_MS if emitted == 1 else 1.7 * ROUND_MS
        told = {"at_ms": at, "emitted": emitted, "width": 4 if emitted > 1 else 1}
        rounds.append({**told, "parked": parked})
    writers = ("target", *SOURCES)
    return {
        "category": category,
        "id": "3",
        "mode": "planner",
        "temperature": 0.0,
        "pieces": [[part, writers[at % 3]] for at, part in enumerate(TEXT)],
        "rounds": rounds,
    }
