"""Cost of a grammar: time per token of an answer that follows a JSON schema.

    python -m edgecs_bench.grammar [-m MODEL.gguf]

The model writes the answer under the mask, greedily, one token per call, so the decode
time is from the same run. Sampling computes a mask for every token. Greedy decoding
checks whether the best token is allowed, and computes a mask only if it is not.
llama.cpp's grammar sampler gets the same tokens. Without -m the models are random, with
49,152 and 151,936 tokens, and their decode times are meaningless. Run it on an idle
machine.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TypeVar

import click
import numpy as np

from edgecs.core.context import Context
from edgecs.core.draft import score_one
from edgecs.engines.llama.token_bytes import LlamaGrammar, token_trie
from edgecs.engines.load_options import LoadOptions
from edgecs.grammar.mask import Grammar
from edgecs.runtime.loader import Loaded, load
from edgecs.testing.fakes import write_random_gguf
from edgecs_bench.report.summary import finish, table

VOCABULARIES = (49_152, 151_936)
PROMPT = "Invent a customer of a web shop. Answer in JSON with all fields.\n"


def _object(**properties: object) -> dict[str, object]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


SCHEMA = _object(
    id={"type": "integer", "minimum": 0, "maximum": 999_999},
    name={"type": "string", "minLength": 1, "maxLength": 60},
    email={"type": "string", "maxLength": 60},
    status={"enum": ["active", "suspended", "deleted"]},
    created={"type": "string", "format": "date"},
    score={"type": "number"},
    tags={"type": "array", "items": {"type": "string", "maxLength": 20}, "maxItems": 5},
    address=_object(
        street={"type": "string", "maxLength": 80},
        city={"type": "string", "maxLength": 40},
        zip={"type": "string", "pattern": "^[0-9]{5}$"},
        country={"enum": ["DE", "FR", "IT", "US", "JP"]},
    ),
    orders={
        "type": "array",
        "minItems": 1,
        "maxItems": 3,
        "items": _object(
            sku={"type": "string", "pattern": "^[A-Z]{3}-[0-9]{4}$"},
            quantity={"type": "integer", "minimum": 1, "maximum": 99},
            price={"type": "number"},
            note={"anyOf": [{"type": "string", "maxLength": 120}, {"type": "null"}]},
        ),
    },
)

Result = TypeVar("Result")


class Clock:
    """Durations by name, in microseconds."""

    def __init__(self) -> None:
        self.spans: dict[str, list[float]] = {}

    def time(self, what: str, action: Callable[[], Result]) -> Result:
        """Runs an action and records its duration."""
        start = perf_counter()
        result = action()
        self.spans.setdefault(what, []).append((perf_counter() - start) * 1e6)
        return result


def write_answer(loaded: Loaded, schema: str, most: int) -> tuple[str, Clock]:
    """An answer that follows both grammars, and the durations of all steps."""
    clock, vocabulary = Clock(), loaded.model.vocabulary
    pointer = vocabulary._vocab
    trie = clock.time("trie", lambda: token_trie(pointer))
    grammar = clock.time("schema", lambda: Grammar.json_schema(schema))
    mask = clock.time("matcher", lambda: grammar.over(trie))
    check = grammar.over(trie)
    theirs = clock.time("llama.cpp set-up", lambda: LlamaGrammar(pointer, schema))
    context = Context(vocabulary.encode(PROMPT))
    start = len(context)
    while len(context) < start + most:
        rows = clock.time("decode", lambda: score_one(loaded.target, context))
        row, answer = rows.logits[0], context.tokens[start:]
        wanted = int(row.argmax())
        clock.time("check", partial(check.allows, answer, wanted))
        ours = clock.time("mask", partial(mask.mask, row, answer))
        allowed = clock.time("llama.cpp mask", theirs.mask)
        ours[~allowed] = -np.inf
        token = int(ours.argmax())
        if token in vocabulary.ends or ours[token] == -np.inf:
            break
        theirs.accept(token)
        context.append([token])
    theirs.close()
    text = b"".join(map(vocabulary.piece, context.tokens[start:].tolist()))
    return text.decode(errors="replace"), clock


def measure(name: str, path: Path, most: int) -> list[dict[str, object]]:
    """One row for each timed step."""
    with load(path, LoadOptions(n_ctx=2048)) as loaded:
        answer, clock = write_answer(loaded, json.dumps(SCHEMA), most)
        size = loaded.target.vocab_size
    click.echo(f"{name} wrote: {answer[:100]!r}", err=True)
    decode = clock.spans["decode"][1:]  # the first one is the prefill
    clock.spans["decode"] = decode
    return [
        {
            "model": name,
            "vocabulary": size,
            "what": what,
            "median_us": round(float(np.median(spans)), 1),
            "p95_us": round(float(np.percentile(spans, 95)), 1),
            "times": len(spans),
            "percent_of_decode": round(100 * float(np.mean(spans) / np.mean(decode)), 2)
            if len(spans) > 1
            else "",
        }
        for what, spans in clock.spans.items()
    ]


@click.command()
@click.option("-m", "--model", type=click.Path(exists=True, path_type=Path))
@click.option(
    "-n", "--tokens", default=250, show_default=True, help="Maximum number of tokens."
)
def main(model: Path | None, tokens: int) -> None:
    """Measure the time that a JSON schema adds per token."""
    cases: list[dict[str, object]] = []
    if model:
        cases = measure(model.stem, model, tokens)
    else:
        with tempfile.TemporaryDirectory() as folder:
            for size in VOCABULARIES:
                path = Path(folder) / f"{size}.gguf"
                write_random_gguf(path, vocab_size=size, n_ctx=2048)
                cases += measure("random", path, tokens)
    table(cases)
    finish({"schema_bytes": len(json.dumps(SCHEMA)), "cases": cases})


if __name__ == "__main__":
    main()
