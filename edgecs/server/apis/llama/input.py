"""Requests of llama-server's own API as prompts and completion requests."""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import ValidationError

from edgecs.core.context import Tokens
from edgecs.server.answers.schemas import CompletionRequest as Completion
from edgecs.server.apis.llama.schemas import (
    MOST_PROMPTS,
    AnswerFields,
    CompletionRequest,
    InfillRequest,
    PromptObject,
)
from edgecs.server.http.replies import Refused, refused_body
from edgecs.server.models.engine import Engine
from edgecs.text.fim import Chunk, Infill, infill_prompt

_SAME = (
    *("stream", "stop", "seed", "grammar", "json_schema", "cache_prompt"),
    *("xtc_probability", "xtc_threshold", "frequency_penalty", "presence_penalty"),
    *("dry_multiplier", "dry_base", "dry_allowed_length", "dry_penalty_last_n"),
    *("dry_sequence_breakers", "speculative", "memory"),
)
_NEVER = -1e30  # the bias of a token that is not chosen
# chosen: what is written in an editor is mostly short.
_ANSWER = 256  # tokens of an infill without n_predict that room is left for


def completion_of(engine: Engine, asked: AnswerFields) -> Completion:
    """The completion request, without its prompt. Raises Refused, ConfigError."""
    fields = {name: getattr(asked, name) for name in _SAME}
    fields |= {"model": asked.model, "prompt": "", "max_tokens": asked.n_predict}
    if asked.n_predict == 0:  # its only token is not shown
        fields["max_tokens"] = 1
    fields |= _sampling(asked)
    biases = _biases(engine, asked)
    if asked.ignore_eos:
        biases |= {str(end): _NEVER for end in sorted(engine.vocabulary.ends)}
    if biases:
        fields["logit_bias"] = biases
    try:
        return Completion.model_validate(fields)
    except ValidationError as error:
        raise refused_body(error) from None


def _sampling(asked: AnswerFields) -> dict[str, Any]:
    """Settings for which llama-server takes values that mean "off"."""
    found: dict[str, Any] = {}
    if asked.temperature is not None:  # below 0 it is greedy
        found["temperature"] = max(0.0, asked.temperature)
    if asked.top_k is not None:
        found["top_k"] = max(0, asked.top_k)
    for name in ("top_p", "min_p"):
        if (value := getattr(asked, name)) is not None:
            found[name] = min(1.0, max(0.0, value))
    if asked.typical_p is not None:
        found["typical_p"] = 1.0 if asked.typical_p <= 0 else min(1.0, asked.typical_p)
    for name in ("repeat_penalty", "repeat_last_n", "top_n_sigma"):
        found[name] = getattr(asked, name)
    return found


def _biases(engine: Engine, asked: AnswerFields) -> dict[str, float]:
    """Biases by id; a text has those of its tokens. False: the token is not chosen."""
    given = asked.logit_bias or ()
    pairs = given.items() if isinstance(given, dict) else given
    found: dict[str, float] = {}
    for what, bias in pairs:
        value = _NEVER if bias is False else float(bias)
        if isinstance(what, str) and not isinstance(given, dict):
            ids = engine.encode(what, document=False).tolist()
        else:
            ids = [what]
        found |= {str(token): value for token in ids}
    return found


def prompts_of(engine: Engine, asked: CompletionRequest) -> tuple[list[Tokens], bool]:
    """The prompts of a request, and whether they came in a list of prompts.

    Raises ConfigError, Refused.
    """
    given = asked.prompt
    if not isinstance(given, list):
        return [_ids(engine, [given])], False
    if given and any(isinstance(part, int) for part in given):
        if any(isinstance(part, list | PromptObject) for part in given):
            raise Refused(400, "the prompt mixes tokens and prompts: give one of both")
        return [_ids(engine, given)], False
    if not 0 < len(given) <= MOST_PROMPTS:
        raise Refused(
            400,
            f"there are {len(given)} prompts: give 1 to {MOST_PROMPTS} in a request",
        )
    several = [one if isinstance(one, list) else [one] for one in given]
    return [_ids(engine, one) for one in several], True


def _ids(engine: Engine, parts: Any) -> Tokens:
    """The ids of the parts of a prompt; a text at its beginning begins a document."""
    found = [np.empty(0, dtype=np.int32)]
    for i, part in enumerate(parts):
        if isinstance(part, int):
            engine.check_ids([part])
            found.append(np.array([part], dtype=np.int32))
            continue
        if isinstance(part, PromptObject):
            if part.multimodal_data:
                raise Refused(400, "images cannot be read: this model reads text")
            part = part.prompt_string
        found.append(engine.encode(part, document=not i))
    return np.concatenate(found)


def infill_of(engine: Engine, asked: InfillRequest) -> Tokens:
    """The prompt of an infill. Raises Refused, ConfigError."""
    fim = engine.fim
    if fim is None:
        raise Refused(
            501,
            f"the model {engine.name!r:.200} cannot fill in: it has no tokens for that "
            "(tokenizer.ggml.fim_*); use a code model, such as qwen2.5-coder",
            "not_supported_error",
        )
    limit = asked.n_predict if asked.n_predict and asked.n_predict > 0 else _ANSWER
    most = max(engine.n_ctx - limit, engine.n_ctx // 2)
    infill = Infill(
        asked.input_prefix,
        asked.input_suffix,
        asked.prompt,
        [Chunk(one.filename, one.text) for one in asked.input_extra],
    )
    begin = engine.encode("").tolist()
    return infill_prompt(infill, fim, engine.encode_plain, most=most, begin=begin)
