"""Request bodies: the fields of OpenAI's API and of llama-server.

Unknown fields are ignored. Sizes are limited here.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from edgecs.server.answers.body import Body
from edgecs.server.answers.tool_schemas import (
    MOST_ID,
    MOST_TOOLS,
    CalledTool,
    ToolFields,
)

MOST_STOPS, MOST_TEXT = 16, 1 << 22  # characters
MOST_MESSAGES, MOST_CHOICES, MOST_LOGPROBS = 4096, 16, 20
MOST_BIASES = 4096

Text = Annotated[str, Field(max_length=MOST_TEXT)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Stop = Annotated[str, Field(min_length=1, max_length=1024)]
_Stop = Annotated[str, Field(max_length=1024)]
# Beyond these float32 logits overflow, and numbers do not fit the sampler's integers.
_Factor = Annotated[float, Field(ge=1e-6, le=1e6, allow_inf_nan=False)]
_Penalty = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]
_Count = Annotated[int, Field(ge=-1, lt=1 << 31)]
_Bias = Annotated[float, Field(ge=-1e30, le=1e30, allow_inf_nan=False)]
_Seed = Annotated[int, Field(ge=-(1 << 63), lt=1 << 64)]


class TextPart(Body):
    """A part of a message; only text is supported."""

    type: Literal["text"]
    text: Text


class Message(Body):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | list[TextPart] | None = None
    name: str | None = Field(default=None, max_length=MOST_ID)
    reasoning_content: Text | None = None
    tool_calls: list[CalledTool] | None = Field(default=None, max_length=MOST_TOOLS)
    tool_call_id: str | None = Field(default=None, max_length=MOST_ID)

    @field_validator("content", mode="before")
    @classmethod
    def _readable(cls, given: Any) -> Any:
        """Names a part that is no text, of the alternatives none of which fits."""
        for part in given if isinstance(given, list) else ():
            kind = part.get("type") if isinstance(part, dict) else None
            if isinstance(kind, str) and kind != "text":
                raise PydanticCustomError(
                    "unreadable",
                    "a part of type {kind} cannot be read: this model reads text, so "
                    "send text parts",
                    {"kind": kind[:80]},
                )
        return given

    def plain(self) -> dict[str, Any]:
        """The role and the text of the message, in the form of chat templates."""
        content = self.content
        if isinstance(content, list):
            content = "".join(part.text for part in content)
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": content or ""}


class StreamOptions(Body):
    """Options of a stream."""

    include_usage: StrictBool = False


class SchemaFormat(Body):
    """A named JSON schema."""

    model_config = ConfigDict(populate_by_name=True)

    name: str = "answer"
    schema_: dict[str, Any] | bool = Field(alias="schema")


class ResponseFormat(Body):
    """The format of an answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: SchemaFormat | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")

    @model_validator(mode="after")
    def _has_schema(self) -> ResponseFormat:
        if self.type == "json_schema" and self.json_schema is None:
            raise ValueError("a response_format of type json_schema needs json_schema")
        return self


class _AnswerFields(Body):
    """Fields of chat completions and completions."""

    model: str | None = Field(default=None, max_length=1024)
    stream: StrictBool = False
    stream_options: StreamOptions | None = None
    stop: _Stop | Annotated[list[_Stop], Field(max_length=MOST_STOPS)] | None = None
    n: int = Field(default=1, ge=1, le=MOST_CHOICES)
    seed: _Seed | None = None
    temperature: Finite | None = Field(default=None, ge=0, le=1e6)
    top_p: Finite | None = Field(default=None, ge=0, le=1)
    top_k: _Count | None = None
    min_p: Finite | None = Field(default=None, ge=0, le=1)
    typical_p: Finite | None = Field(default=None, gt=0, le=1)
    repeat_penalty: _Factor | None = None
    repeat_last_n: _Count | None = None
    top_n_sigma: Finite | None = None
    xtc_probability: Finite | None = Field(default=None, ge=0, le=1)
    xtc_threshold: Finite | None = Field(default=None, ge=0, le=1)
    dry_multiplier: Finite | None = Field(default=None, ge=0)
    dry_base: Finite | None = Field(default=None, ge=0)
    dry_allowed_length: int | None = Field(default=None, ge=0)
    dry_penalty_last_n: int | None = Field(default=None, ge=-1)
    dry_sequence_breakers: (
        Annotated[list[Stop], Field(max_length=MOST_STOPS)] | None
    ) = None
    frequency_penalty: _Penalty | None = None
    presence_penalty: _Penalty | None = None
    logit_bias: dict[str, _Bias] | None = Field(default=None, max_length=MOST_BIASES)
    grammar: Text | None = None
    json_schema: dict[str, Any] | bool | None = None
    speculative: StrictBool | None = None
    cache_prompt: StrictBool | None = None
    memory: StrictBool | None = None
    token_details: StrictBool = False

    @property
    def remembers(self) -> bool:
        """Whether stored texts are used, and the answer is stored if answers are.

        An answer that leaves no cells leaves no text either, unless it is asked for.
        """
        if self.memory is None:
            return self.cache_prompt is not False
        return self.memory

    @property
    def stops(self) -> list[str]:
        """Stop strings; empty ones do not count."""
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [stop for stop in given if stop]


def _most(*limits: int | None) -> int | None:
    """The first limit that is given, of tokens of an answer; -1: there is none."""
    given = next((one for one in limits if one is not None), -1)
    return None if given < 0 else given


Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class TemplateOptions(Body):
    """Values for a model's chat template."""

    enable_thinking: StrictBool | None = None
    reasoning_effort: Effort | None = None


class ChatRequest(_AnswerFields, ToolFields):
    """POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1, max_length=MOST_MESSAGES)
    max_tokens: int | None = Field(default=None, ge=-1)
    max_completion_tokens: int | None = Field(default=None, ge=-1)
    n_predict: int | None = Field(default=None, ge=-1)
    logprobs: StrictBool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MOST_LOGPROBS)
    response_format: ResponseFormat | None = None
    chat_template_kwargs: TemplateOptions | None = None
    reasoning_effort: Effort | None = None

    @property
    def effort(self) -> Effort | None:
        """How long to think; None: the template decides."""
        options = self.chat_template_kwargs
        return (options and options.reasoning_effort) or self.reasoning_effort

    @property
    def thinking(self) -> bool | None:
        """Whether to think; None: the template decides."""
        options = self.chat_template_kwargs
        if options is not None and options.enable_thinking is not None:
            return options.enable_thinking
        asked = self.reasoning_effort
        return None if asked is None else asked not in ("none", "minimal")

    @property
    def most(self) -> int | None:
        """The most tokens of an answer; None means no limit."""
        return _most(self.max_completion_tokens, self.max_tokens, self.n_predict)


class CompletionRequest(_AnswerFields):
    """POST /v1/completions."""

    prompt: Text | list[int]
    max_tokens: int | None = Field(default=None, ge=-1)
    n_predict: int | None = Field(default=None, ge=-1)
    logprobs: int | None = Field(default=None, ge=0, le=MOST_LOGPROBS)
    echo: StrictBool = False

    @property
    def most(self) -> int | None:
        """The most tokens of an answer; None means no limit, as for llama-server."""
        return _most(self.max_tokens, self.n_predict)

    @field_validator("prompt", mode="before")
    @classmethod
    def _sole(cls, given: Any) -> Any:
        """OpenAI's clients send lists of prompts, also of one."""
        several = isinstance(given, list) and given
        if not several or not all(isinstance(one, str | list) for one in given):
            return given
        if len(given) > 1:
            raise ValueError(f"a request has one prompt, this one has {len(given)}")
        return given[0]


class Named(BaseModel):
    """The fields of every request that choose a model, and how long it stays."""

    model: str | None = Field(default=None, max_length=1024)
    keep_alive: Any = None


class LoadRequest(Body):
    """POST /models/load."""

    model: str = Field(max_length=1024)


class UnloadRequest(Body):
    """POST /models/unload. cancel: end current answers instead of finishing them."""

    model: str = Field(max_length=1024)
    cancel: StrictBool = False


class TokenizeRequest(Body):
    """POST /tokenize."""

    content: Text
    add_special: StrictBool = False
    with_pieces: StrictBool = False


class DetokenizeRequest(Body):
    """POST /detokenize."""

    tokens: list[int] = Field(max_length=MOST_TEXT)


class Turn(Message):
    """A message; an answer's ids are taken as they are, and not tokenised again."""

    ids: list[int] | None = Field(default=None, max_length=MOST_TEXT)


class TemplateRequest(ToolFields):
    """POST /apply-template.

    with_tokens: also return the ids of the prompt. partial: ids of an unfinished answer
    that they end with.
    """

    messages: list[Turn] = Field(min_length=1, max_length=MOST_MESSAGES)
    with_tokens: StrictBool = False
    partial: list[int] = Field(default=[], max_length=MOST_TEXT)
