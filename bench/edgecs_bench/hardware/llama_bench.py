"""Converts output of llama-bench (`-o json` or `-o jsonl`) to a hardware profile.

A tg row gives the time of one token, a pp N row that of a call of N tokens if N fits
into one call (n_ubatch). pp computes the logits of its last token only, so it is
slightly faster than verifying N tokens. Times are those at the smallest depth; if a
width was measured with several options, the fastest time counts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

from edgecs_bench.hardware.curves import LARGE

_CALL = 512  # llama-bench's default n_ubatch


def parse(text: str) -> Any:
    """Parses JSON, or a list of objects from JSON Lines; raises ValueError."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        lines = [line for line in text.splitlines() if line.strip()]
        if len(lines) < 2 or not lines[0].rstrip().endswith("}"):
            raise ValueError(f"not JSON: {error}") from error
        return list(map(json.loads, lines))


def is_output(fields: Any) -> bool:
    """Whether the fields look like rows of llama-bench."""
    rows = fields if isinstance(fields, list) else [fields]
    return bool(rows) and all(isinstance(r, dict) and "n_prompt" in r for r in rows)


def profile(fields: Any, name: str) -> dict[str, Any]:
    """The fields of a profile; every model is a target, and a drafter for others.

    Raises ValueError, KeyError or TypeError for invalid rows.
    """
    rows = fields if isinstance(fields, list) else [fields]
    names = dict.fromkeys(str(row["model_filename"]) for row in rows)
    models = [
        _model([row for row in rows if row["model_filename"] == one]) for one in names
    ]
    return {
        "format": "edgecs-hardware/1",
        "name": name,
        "note": _note(rows[0]),
        "source": "llama-bench",
        "targets": models,
        "drafters": [_drafter(model) for model in models],
    }


def _note(row: dict[str, Any]) -> str:
    """The device and the backend, as far as they are given."""
    known = (row.get(key) for key in ("gpu_info", "cpu_info", "backends"))
    return ", ".join(str(value) for value in known if value)


def _model(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    depth = min(int(row.get("n_depth") or 0) for row in rows)
    times: dict[str, float] = {}
    for row in rows:
        if int(row.get("n_depth") or 0) == depth and (found := _call(row)):
            width, ms = found
            times[width] = min(ms, times.get(width, ms))
    model = PurePath(str(rows[0]["model_filename"]).replace("\\", "/")).stem
    if len(times) < 2 or "1" not in times:
        raise ValueError(f"{model} needs a tg row and a pp row (-p 2,4,8,16 -n 64)")
    return {
        "model": model,
        "ms": times,
        "overhead_ms": LARGE,
        "parameters": rows[0].get("model_n_params"),
        "bytes": rows[0].get("model_size"),
        "depth": depth,
    }


def _call(row: dict[str, Any]) -> tuple[str, float] | None:
    """Width and milliseconds of one call; None: the row mixes calls."""
    prompt, said, rate = int(row["n_prompt"]), int(row["n_gen"]), float(row["avg_ts"])
    if not rate > 0:
        raise ValueError(f"avg_ts must be a positive number, got {rate}")
    if bool(prompt) == bool(said):
        return None
    width = 1 if said else min(prompt, int(row.get("n_ubatch") or _CALL))
    return str(width), 1e3 * width / rate


def _drafter(model: dict[str, Any]) -> dict[str, Any]:
    widest = max(model["ms"], key=int)
    reading = model["ms"][widest] / int(widest)
    return {"name": model["model"], "ms": model["ms"], "reading_ms": reading}
