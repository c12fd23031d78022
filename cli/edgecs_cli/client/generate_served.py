"""`edgecs generate` with a running server: the same text, without loading a model."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import chain
from typing import Any

from edgecs.sampling.settings import Sampling
from edgecs.text.thoughts import CHANNELS
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
    ids, texts = list[int](), list[str]()
    tagged = None if values["raw"] else _tagged(model, values["stop"])
    stream = Stream(
        model,
        {
            **fields,
            "prompt": _prompt(model, values, text),
            "stop": list(values["stop"]) or None,
        },
        max_tokens=most if most >= 0 else None,
        detailed=values["as_json"] or values["explain"] or tagged is not None,
    )
    try:
        with closing(stream.pieces()) as pieces:
            first = next(pieces, None)
            call.say(served_line(model.weights.model, url, model.n_ctx))
            every = _noted(
                chain([first] if first else [], pieces), lambda one: ids.append(one.id)
            )
            shown = tagged(every) if tagged else every
            noted = _noted(shown, lambda one: texts.append(one.text))
            _show(noted, model, values)
    except (ServerLost, ServerRefused) as error:
        if stream.answered.tokens:
            raise
        raise NotServed(str(error)) from error
    except KeyboardInterrupt:
        stream.reason = "cancelled"
        if not values["as_json"]:
            echo()
    if values["as_json"]:
        echo(json.dumps(_report(model, stream, ("".join(texts), ids), sampling)))
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


def _tagged(
    model: Served, stop: Sequence[str]
) -> Callable[[Iterator[Piece]], Iterator[Piece]] | None:
    """What puts the thoughts of pieces between <think> tags; None: they are there.

    Raises NotServed.
    """
    if CHANNELS not in model.template:
        return None
    from edgecs.toolcalls.form import AnswerForm
    from edgecs_cli.client.thoughts import marks_of, with_marks

    def ask(path: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        return model.connection.call("POST", path, {**body, "model": model.name})

    form = AnswerForm.of(model.template)
    try:
        marks = marks_of(form, ask)
    except (ServerLost, ServerRefused) as error:
        raise NotServed(str(error)) from error

    def over(pieces: Iterator[Piece]) -> Iterator[Piece]:
        marked = with_marks(pieces, marks, stop)
        return form.think_tags(open=False).over(marked, lambda one: bool(one.ends))

    return over


def _noted(pieces: Iterator[Piece], note: Callable[[Piece], None]) -> Iterator[Piece]:
    """All pieces, each of them noted for --json."""
    for piece in pieces:
        note(piece)
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
    model: Served, stream: Stream, said: tuple[str, list[int]], sampling: Sampling
) -> dict[str, object]:
    """The JSON object of --json; an answer that was cut off has fewer fields."""
    about, (text, ids) = stream.answered, said
    usage = {
        "prompt_tokens": about.prompt_tokens,
        "completion_tokens": about.tokens,
        "total_tokens": about.prompt_tokens + about.tokens,
        "prompt_tokens_details": {"cached_tokens": about.cached_tokens},
    }
    stated = {"timings": about.timings, "speculative": about.speculative}
    return {
        "text": text,
        "tokens": ids,
        "finish_reason": stream.reason,
        **({"usage": usage} if about.timings else {}),
        "sampling": {"temperature": sampling.temperature, "seed": sampling.seed},
        "kernels": model.kernels,
        **{name: value for name, value in stated.items() if value},
        "exact": model.exact,
    }
