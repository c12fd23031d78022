"""Request bodies of llama-server's own API.

Unknown fields are ignored, and so are those that edgecs has no use for (`id_slot`,
`samplers`, `n_keep`, `lora`, ...).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StrictBool, StrictInt

from edgecs.server.answers.body import Body
from edgecs.server.answers.schemas import (
    MOST_BIASES,
    MOST_CHOICES,
    MOST_LOGPROBS,
    MOST_STOPS,
    MOST_TEXT,
    Finite,
    Text,
)

MOST_CHUNKS = 1024  # of further context
_Stop = Annotated[str, Field(max_length=1024)]
_Bias = tuple[StrictInt | Annotated[str, Field(max_length=1024)], Finite | StrictBool]
_Field = Annotated[str, Field(max_length=256)]


class PromptObject(Body):
    """A prompt in an object, as clients of models that read images send it."""

    prompt_string: Text
    multimodal_data: list[Any] | None = Field(default=None, max_length=64)


Ids = Annotated[list[StrictInt | Text], Field(max_length=MOST_TEXT)]
"""Ids and texts in any order."""
Prompts = Annotated[
    list[StrictInt | Text | PromptObject | Ids], Field(max_length=MOST_TEXT)
]
"""Ids and texts of one prompt, or several prompts."""


class AnswerFields(Body):
    """Fields of completions and infills.

    n_predict: -1: no limit; 0: the prompt is only read. t_max_predict_ms: an answer
    that has a line ends after this time, counted from its first token; 0: no limit.
    """

    model: str | None = Field(default=None, max_length=1024)
    n_predict: int | None = Field(default=None, ge=-1)
    stream: StrictBool = False
    stop: _Stop | Annotated[list[_Stop], Field(max_length=MOST_STOPS)] | None = None
    temperature: Finite | None = None
    top_k: int | None = Field(default=None, lt=1 << 31)
    top_p: Finite | None = None
    min_p: Finite | None = None
    typical_p: Finite | None = None
    top_n_sigma: Finite | None = None
    xtc_probability: Finite | None = None
    xtc_threshold: Finite | None = None
    repeat_penalty: Finite | None = None
    repeat_last_n: int | None = None
    presence_penalty: Finite | None = None
    frequency_penalty: Finite | None = None
    dry_multiplier: Finite | None = None
    dry_base: Finite | None = None
    dry_allowed_length: int | None = None
    dry_penalty_last_n: int | None = None
    dry_sequence_breakers: list[_Stop] | None = Field(
        default=None, max_length=MOST_STOPS
    )
    seed: int | None = Field(default=None, ge=-(1 << 63), lt=1 << 64)
    grammar: Text | None = None
    json_schema: dict[str, Any] | bool | None = None
    logit_bias: (
        Annotated[list[_Bias], Field(max_length=MOST_BIASES)] | dict[str, Finite] | None
    ) = None
    ignore_eos: StrictBool = False
    cache_prompt: StrictBool | None = None
    n_probs: int = Field(default=0, ge=0, le=MOST_LOGPROBS)
    t_max_predict_ms: Finite = 0
    return_tokens: StrictBool = False
    timings_per_token: StrictBool = False
    response_fields: list[_Field] | None = Field(default=None, max_length=64)
    speculative: StrictBool | None = None
    memory: StrictBool | None = None


class CompletionRequest(AnswerFields):
    """POST /completion."""

    prompt: Text | Prompts | PromptObject


class ExtraChunk(Body):
    """A part of another file."""

    filename: str = Field(default="tmp", max_length=4096)
    text: Text = ""


class InfillRequest(AnswerFields):
    """POST /infill. prompt: text after the prefix, such as the line of the cursor."""

    input_prefix: Text = ""
    input_suffix: Text = ""
    input_extra: list[ExtraChunk] = Field(default=[], max_length=MOST_CHUNKS)
    prompt: Text = ""


StopType = Literal["none", "eos", "limit", "word"]
MOST_PROMPTS = MOST_CHOICES
