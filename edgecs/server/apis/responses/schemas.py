"""Request bodies of OpenAI's Responses API.

Unknown fields are ignored.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, StrictBool, Tag

from edgecs.server.answers.body import Body
from edgecs.server.answers.schemas import MOST_LOGPROBS, MOST_MESSAGES, Finite, Text

_Id = Annotated[str, Field(max_length=256)]


class TextPart(Body):
    """A part of a message."""

    type: Literal["input_text", "output_text"]
    text: Text


class RefusalPart(Body):
    """A refusal in an earlier answer."""

    type: Literal["refusal"]
    refusal: Text


class OtherPart(Body):
    """A part that models of text cannot read."""

    type: Literal["input_image", "input_file", "input_audio"]


Part = Annotated[TextPart | RefusalPart | OtherPart, Field(discriminator="type")]


class Message(Body):
    """A message."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Text | list[Part]


class FunctionCall(Body):
    """A call of a function in an earlier answer."""

    type: Literal["function_call"]
    call_id: _Id
    name: _Id
    arguments: Text


class FunctionResult(Body):
    """The result of a call."""

    type: Literal["function_call_output"]
    call_id: _Id
    output: Text | list[Part]


class ReasoningPart(Body):
    """A part of thoughts, or of their summary."""

    type: Literal["reasoning_text", "summary_text"]
    text: Text


class Reasoning(Body):
    """The thoughts of an earlier answer. Encrypted ones have no content."""

    type: Literal["reasoning"]
    content: list[ReasoningPart] | None = Field(default=None, max_length=MOST_MESSAGES)
    summary: list[ReasoningPart] | None = Field(default=None, max_length=MOST_MESSAGES)

    @property
    def text(self) -> str:
        """The thoughts; their summary if there is nothing else."""
        return "\n\n".join(part.text for part in self.content or self.summary or ())


class Reference(Body):
    """An item of a stored response."""

    type: Literal["item_reference"]


def _kind(item: Any) -> Any:
    """The type of an item; a message need not say it."""
    if isinstance(item, dict):
        return item.get("type") or "message"
    return getattr(item, "type", None)


Item = Annotated[
    Annotated[Message, Tag("message")]
    | Annotated[FunctionCall, Tag("function_call")]
    | Annotated[FunctionResult, Tag("function_call_output")]
    | Annotated[Reasoning, Tag("reasoning")]
    | Annotated[Reference, Tag("item_reference")],
    Discriminator(_kind),
]


class TextFormat(Body):
    """The format of an answer."""

    type: Literal["text"]


class ObjectFormat(Body):
    """Any JSON object."""

    type: Literal["json_object"]


class SchemaFormat(Body):
    """A named JSON schema."""

    model_config = ConfigDict(populate_by_name=True)

    type: Literal["json_schema"]
    name: str = Field(default="answer", max_length=256)
    schema_: dict[str, Any] = Field(alias="schema")
    strict: StrictBool | None = None


class TextConfig(Body):
    """The form of the text."""

    format: TextFormat | ObjectFormat | SchemaFormat | None = Field(
        default=None, discriminator="type"
    )


class ReasoningConfig(Body):
    """Whether to think, and how long; see `reasoning_effort` of chats."""

    effort: str | None = Field(default=None, max_length=16)
    summary: str | None = Field(default=None, max_length=16)


class StreamOptions(Body):
    """Options of a stream."""

    include_obfuscation: StrictBool | None = None


class ResponsesRequest(Body):
    """POST /v1/responses."""

    input: Text | Annotated[list[Item], Field(min_length=1, max_length=MOST_MESSAGES)]
    model: str | None = Field(default=None, max_length=1024)
    instructions: Text | None = None
    max_output_tokens: int | None = Field(default=None, ge=-1)
    temperature: Finite | None = Field(default=None, ge=0)
    top_p: Finite | None = Field(default=None, ge=0, le=1)
    top_logprobs: int | None = Field(default=None, ge=0, le=MOST_LOGPROBS)
    include: list[Text] | None = Field(default=None, max_length=64)
    text: TextConfig | None = None
    reasoning: ReasoningConfig | None = None
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    store: StrictBool | None = None
    background: StrictBool | None = None
    previous_response_id: str | None = Field(default=None, max_length=1024)
    conversation: Any = None
    prompt: Any = None
    metadata: dict[str, Text] | None = Field(default=None, max_length=64)
    tools: list[dict[str, Any]] | None = Field(default=None, max_length=1024)
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: StrictBool | None = None
    truncation: Literal["auto", "disabled"] | None = None
    user: Text | None = None

    @property
    def with_logprobs(self) -> bool:
        """Whether log-probabilities are wanted."""
        named = "message.output_text.logprobs" in (self.include or ())
        return named or bool(self.top_logprobs)
