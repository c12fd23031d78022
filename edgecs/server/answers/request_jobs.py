"""From requests to jobs: sampling settings, grammars, limits."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from edgecs.core.context import Tokens
from edgecs.errors import ConfigError
from edgecs.grammar.lazy import LazyGrammar
from edgecs.grammar.mask import Grammar
from edgecs.sampling.settings import Sampling
from edgecs.server.answers.schemas import ChatRequest, CompletionRequest, ResponseFormat
from edgecs.server.batching.job import Job
from edgecs.server.models.engine import Engine

_SEEDS = 1 << 32
_COLDEST = 1e-6  # chosen: below it an answer is greedy, as quotients would overflow
_SAMPLED = (
    "temperature",
    "top_p",
    "min_p",
    "typical_p",
    "repeat_penalty",
    "repeat_last_n",
    "frequency_penalty",
    "presence_penalty",
    "top_n_sigma",
    "xtc_probability",
    "xtc_threshold",
    "dry_multiplier",
    "dry_base",
    "dry_allowed_length",
)


class Constraint(NamedTuple):
    """What constrains an answer. shown: control tokens that are part of its text."""

    grammar: Grammar | LazyGrammar | None
    shown: Mapping[int, bytes] | None = None


def sampling_of(asked: ChatRequest | CompletionRequest, usual: Sampling) -> Sampling:
    """The settings of a request; those that it does not have are the server's.

    Without a seed, a random one is used. Raises ConfigError.
    """
    given: dict[str, Any] = {
        name: value for name in _SAMPLED if (value := getattr(asked, name)) is not None
    }
    if given.get("temperature", 1.0) < _COLDEST:
        given["temperature"] = 0.0
    if asked.top_k is not None:
        given["top_k"] = max(0, asked.top_k)  # -1 means off
    if asked.dry_penalty_last_n is not None:
        given["dry_last_n"] = asked.dry_penalty_last_n
    if asked.dry_sequence_breakers is not None:
        given["dry_breakers"] = tuple(asked.dry_sequence_breakers)
    if asked.logit_bias:
        given["logit_bias"] = tuple(_biases(asked.logit_bias))
    seed = asked.seed if asked.seed is not None and asked.seed >= 0 else None
    given["seed"] = secrets.randbelow(_SEEDS) if seed is None else seed
    return replace(usual, **given)


def _biases(biases: Mapping[str, float]) -> list[tuple[int, float]]:
    found = []
    for token, bias in biases.items():
        if not (token.isascii() and token.isdigit() and len(token) < 10):
            raise ConfigError(f"logit_bias: {token!r:.40} is not a token's id")
        found.append((int(token), bias))
    return found


def is_constrained(
    asked: ChatRequest | CompletionRequest, form: ResponseFormat | None
) -> bool:
    """Whether `grammar_of` has something to check."""
    given = (form, asked.json_schema, asked.grammar)
    return any(one is not None for one in given)


def grammar_of(
    asked: ChatRequest | CompletionRequest, form: ResponseFormat | None
) -> Grammar | None:
    """The grammar of an answer, if any. Raises ConfigError."""
    schemas: list[Any] = []
    if form is not None and form.type == "json_object":
        schemas.append(form.schema_ or {"type": "object"})
    if form is not None and form.json_schema is not None:
        schemas.append(form.json_schema.schema_)
    if asked.json_schema is not None:
        schemas.append(asked.json_schema)
    if len(schemas) + (asked.grammar is not None) > 1:
        raise ConfigError("schemas and grammars cannot be combined: give one")
    if asked.grammar is not None:
        return Grammar.gbnf(asked.grammar)
    return Grammar.json_schema(schemas[0]) if schemas else None


async def jobs_of(
    engine: Engine,
    asked: ChatRequest | CompletionRequest,
    prompt: Tokens,
    logprobs: int | None,
    limits: Constraint,
    seconds: float,
) -> list[Job]:
    """A job for each of the `n` answers of a request. Raises EdgecsError.

    seconds: time limit of an answer.
    """
    if not prompt.size:
        raise ConfigError("the prompt is empty: give some text")
    engine.check_room(prompt)
    first = sampling_of(asked, engine.runtime.recipe.sampling)
    jobs = []
    for i in range(asked.n):
        sampling = replace(first, seed=(first.seed + i) % (1 << 64))
        rule = await asyncio.to_thread(engine.rule, sampling, limits.grammar)
        jobs.append(
            Job(
                prompt,
                max_tokens=asked.most,
                stop=asked.stops,
                rule=rule,
                logprobs=logprobs,
                details=asked.token_details,
                shown=limits.shown,
                speculate=asked.speculative is not False,
                caches=asked.cache_prompt is not False,
                memory=asked.remembers,
                deadline=time.monotonic() + seconds,
            )
        )
    return jobs
