"""`edgecs generate` with a running server: the same text, without loading a model."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import Any

from edgecs.sampling.settings import Sampling
from edgecs_cli.client.answered import Piece
from edgecs_cli.client.choice import NotServed, Served, connected, request_of
from edgecs_cli.client.connection import ServerLost, ServerRefused
from edgecs_cli.client.stream import Stream
from edgecs_cli.console import echo, has_colours, say
from edgecs_cli.options.recipe import Call
from edgecs_cli.options.sampling import read_sampling
from edgecs_cli.origins import Paint, origins_legend, painter, plain
from edgecs_cli.short_lines import answer_details, answer_line, served_line


def answer_served(values: Mapping[str, Any], text: str, call: Call) -> int:
    """Answers a prompt, see `generate`; returns the exit code.

    Raises NotServed, then nothing was written; ServerLost and ServerRefused in the
    middle of an answer, or for a server given by its URL.
    """
    model = connected(values, call)
    try:
        return _answer(model, values, text, call)
    finally:
        model.connection.close()


def _answer(model: Served, values: Mapping[str, Any], text: str, call: Call) -> int:
    sampling = read_sampling(dict(values))
    url = model.connection.url
    fields = request_of(values, sampling, speculative=not values["no_spec"])
    most = values["max_tokens"]
    stream = Stream(
        model,
        {
            **fields,
            "prompt": _prompt(model, values, text),
            "stop": list(values["stop"]) or None,
        },
        max_tokens=most if most >= 0 else None,
        detailed=values["as_json"] or values["explain"],
    )
    said = list[Piece]()
    try:
        with closing(stream.pieces()) as pieces:
            first = next(pieces, None)
            call.say(served_line(model.weights.model, url, model.n_ctx))
            _show(_noted([first] if first else [], pieces, said), model, values)
    except (ServerLost, ServerRefused) as error:
        if stream.answered.tokens:
            raise
        raise NotServed(str(error)) from error
    except KeyboardInterrupt:
        stream.reason = "cancelled"
        if not values["as_json"]:
            echo()
    if values["as_json"]:
        echo(json.dumps(_report(model, stream, said, sampling)))
    _tell(model, stream, values, call, sampling)
    return 130 if stream.reason == "cancelled" else 0


def _tell(
    model: Served,
    stream: Stream,
    values: Mapping[str, Any],
    call: Call,
    sampling: Sampling,
) -> None:
    """Prints notes on the answer to stderr."""
    about = stream.answered
    if values["explain"] and not call.quiet:
        origins, colours = about.origins(model.tiers), has_colours(sys.stdout)
        for line in origins_legend(origins, colours=colours):
            echo(line, err=True)
    drawn = values["seed"] < 0 and not sampling.is_greedy
    say(
        answer_line(about, stream.reason, seed=sampling.seed if drawn else None),
        quiet=call.quiet,
    )
    for line in answer_details(about) if call.verbose else ():
        call.say(line)


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


def _noted(
    first: list[Piece], pieces: Iterator[Piece], said: list[Piece]
) -> Iterator[Piece]:
    """All pieces; for --json they are kept."""
    for some in (first, pieces):
        for piece in some:
            said.append(piece)
            yield piece


def _show(pieces: Iterator[Piece], model: Served, values: Mapping[str, Any]) -> None:
    """Writes an answer as it streams, and a newline at its end; not for --json."""
    if values["as_json"]:
        for _ in pieces:
            pass
        return
    paint: Paint = plain
    if values["explain"]:
        paint = painter(model.chain, colours=has_colours(sys.stdout))
    last = ""
    for text in filter(None, paint(pieces)):
        echo(text, nl=False)
        last = text
    if not last.endswith("\n"):
        echo()


def _report(
    model: Served, stream: Stream, said: list[Piece], sampling: Sampling
) -> dict[str, object]:
    """The JSON object of --json; an answer that was cut off has fewer fields."""
    about = stream.answered
    usage = {
        "prompt_tokens": about.prompt_tokens,
        "completion_tokens": about.tokens,
        "total_tokens": about.prompt_tokens + about.tokens,
        "prompt_tokens_details": {"cached_tokens": about.cached_tokens},
    }
    stated = {"timings": about.timings, "speculative": about.speculative}
    return {
        "text": "".join(piece.text for piece in said),
        "tokens": [piece.id for piece in said],
        "finish_reason": stream.reason,
        **({"usage": usage} if about.timings else {}),
        "sampling": {"temperature": sampling.temperature, "seed": sampling.seed},
        "kernels": model.kernels,
        **{name: value for name, value in stated.items() if value},
        "exact": model.exact,
    }
