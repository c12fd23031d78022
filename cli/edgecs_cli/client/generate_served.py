"""`edgecs generate` with a running server: the same text, without loading a model."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from edgecs_cli.client.choice import NotServed, Served, request_of, served
from edgecs_cli.client.connection import ServerLost, ServerRefused
from edgecs_cli.console import echo, say
from edgecs_cli.options.recipe import Call
from edgecs_cli.options.sampling import given_grammar, read_sampling
from edgecs_cli.short_lines import BETWEEN, answer_line, model_name, thousands


@dataclass
class Answered:
    """What is known of an answer; `Counts` for its line."""

    tokens: int = 0
    tokens_per_second: float = 0.0
    prompt_seconds: float = 0.0
    tested: int = 0
    accepted: int = 0
    faults: Mapping[str, str] = field(default_factory=dict)
    context: int = 0  # tokens of the prompt and of the answer
    reason: str | None = None

    def take(self, event: Mapping[str, Any]) -> None:
        """Notes the counts of the last event."""
        timings, speculative = event.get("timings"), event.get("speculative")
        self.tokens = int(_number(timings, "predicted_n"))
        prompt = _number(timings, "cache_n") + _number(timings, "prompt_n")
        self.context = int(prompt) + self.tokens
        self.prompt_seconds = _number(timings, "prompt_ms") / 1e3
        seconds = _number(timings, "predicted_ms") / 1e3
        if seconds > 0 and self.tokens > 1:
            self.tokens_per_second = (self.tokens - 1) / seconds
        self.tested = int(_number(timings, "draft_n"))
        self.accepted = int(_number(timings, "draft_n_accepted"))
        faults = speculative.get("faults") if isinstance(speculative, dict) else None
        self.faults = faults if isinstance(faults, dict) else {}


def _number(table: Any, name: str) -> float:
    value = table.get(name) if isinstance(table, dict) else None
    return value if isinstance(value, int | float) and math.isfinite(value) else 0.0


def answer_served(values: Mapping[str, Any], text: str, call: Call) -> int:
    """Answers a prompt, see `generate`; returns the exit code.

    Raises NotServed, then nothing was written; ServerLost and ServerRefused in the
    middle of an answer, or for a server given by its URL.
    """
    with served(values, call.note) as model:
        return _answer(model, values, text, quiet=call.quiet)


def _answer(model: Served, values: Mapping[str, Any], text: str, *, quiet: bool) -> int:
    sampling = read_sampling(dict(values))
    body = {**request_of(values, sampling), **_grammar(values)}
    body |= {"model": model.name, "stream": True, "stop": list(values["stop"]) or None}
    if values["max_tokens"] >= 0:
        body["max_tokens"] = values["max_tokens"]
    about = Answered()
    pieces = _pieces(model, {**body, "prompt": _prompt(model, values, text)}, about)
    parts = [model_name(model.name), f"served by {model.connection.url}"]
    try:
        first = next(pieces, "")
        say(BETWEEN.join([*parts, f"{thousands(model.n_ctx)} context"]), quiet=quiet)
        _show(first, pieces)
    except (ServerLost, ServerRefused) as error:
        if about.tokens:
            raise
        raise NotServed(str(error)) from error
    except KeyboardInterrupt:
        model.connection.close()
        about.reason = "cancelled"
        echo()
    if about.reason == "length" and not 0 <= values["max_tokens"] <= about.tokens:
        about.reason = "context" if about.context >= model.n_ctx else "cancelled"
    drawn = values["seed"] < 0 and not sampling.is_greedy
    say(
        answer_line(about, about.reason, seed=sampling.seed if drawn else None),
        quiet=quiet,
    )
    return 130 if about.reason == "cancelled" else 0


def _prompt(model: Served, values: Mapping[str, Any], text: str) -> Any:
    """The prompt of a request: ids, or with --raw a text. Raises NotServed."""
    if values["raw"]:
        return text
    messages = [{"role": "user", "content": text}]
    if values["system"]:
        messages.insert(0, {"role": "system", "content": values["system"]})
    body = {"model": model.name, "messages": messages, "with_tokens": True}
    try:
        return model.connection.call("POST", "/apply-template", body)["tokens"]
    except (KeyError, ServerLost, ServerRefused) as error:
        raise NotServed(str(error)) from error


def _grammar(values: Mapping[str, Any]) -> dict[str, Any]:
    given = given_grammar(dict(values))
    if given is None:
        return {}
    kind, text = given
    if kind == "grammar":
        return {"grammar": text}
    try:
        return {"json_schema": json.loads(text)}
    except (ValueError, RecursionError) as error:
        raise NotServed("the schema is not JSON") from error


def _pieces(model: Served, body: Mapping[str, Any], about: Answered) -> Iterator[str]:
    """The texts of an answer as they arrive; `about` is filled."""
    for event in model.connection.events("/v1/completions", body):
        choices = event.get("choices")
        if not (isinstance(choices, list) and choices):
            continue
        about.tokens += 1  # at least one in each event, should none follow
        if choices[0].get("finish_reason") is not None:
            about.take(event)
            about.reason = str(choices[0]["finish_reason"])
        if text := choices[0].get("text"):
            yield str(text)


def _show(first: str, pieces: Iterator[str]) -> None:
    """Writes an answer as it streams, and a newline at its end."""
    last = first
    echo(first, nl=False)
    for piece in pieces:
        echo(piece, nl=False)
        last = piece
    if not last.endswith("\n"):
        echo()
