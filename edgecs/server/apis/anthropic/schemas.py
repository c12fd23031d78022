"""Request bodies of Anthropic's API.

Unknown fields are ignored.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, StrictBool

from edgecs.server.answers.body import Body
from edgecs.server.answers.schemas import (
    MOST_MESSAGES,
    MOST_STOPS,
    Effort,
    Finite,
    Stop,
    Text,
)


class TextBlock(Body):
    """A block of text."""

    type: Literal["text"]
    text: Text


class ThinkingBlock(Body):
    """A block of thoughts of an earlier answer. Redacted ones have no text."""

    type: Literal["thinking", "redacted_thinking"]
    thinking: Text = ""


class ToolUseBlock(Body):
    """A call of a tool in an earlier answer."""

    type: Literal["tool_use"]
    id: str = Field(max_length=256)
    name: str = Field(max_length=256)
    input: dict[str, Any]


class OtherBlock(Body):
    """A block that models of text cannot read."""

    type: Literal["image", "document", "search_result"]


_Shown = Annotated[TextBlock | OtherBlock, Field(discriminator="type")]


class ToolResultBlock(Body):
    """The result of a call."""

    type: Literal["tool_result"]
    tool_use_id: str = Field(max_length=256)
    content: Text | list[_Shown] = ""
    is_error: StrictBool = False


Block = Annotated[
    TextBlock | ThinkingBlock | ToolUseBlock | ToolResultBlock | OtherBlock,
    Field(discriminator="type"),
]


class Message(Body):
    """One message; consecutive ones of a role are one turn."""

    role: Literal["user", "assistant", "system"]
    content: Text | list[Block]


class Thinking(Body):
    """Whether to think. The budget is ignored: local models have none."""

    type: Literal["enabled", "disabled", "adaptive", "between_tools"]
    display: Literal["summarized", "omitted"] | None = None


class OutputFormat(Body):
    """The schema of an answer."""

    model_config = ConfigDict(populate_by_name=True)

    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Body):
    """The form of an answer. effort: how long to think."""

    format: OutputFormat | None = None
    effort: Effort | None = None


class Tool(Body):
    """A tool of the client. Tools that Anthropic runs have no schema."""

    name: str = Field(max_length=256)
    description: Text | None = None
    input_schema: dict[str, Any]


class ToolChoice(Body):
    """Which tools may or must be called."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = Field(default=None, max_length=256)
    disable_parallel_tool_use: StrictBool = False


class CountRequest(Body):
    """POST /v1/messages/count_tokens."""

    model: str = Field(max_length=1024)
    messages: list[Message] = Field(min_length=1, max_length=MOST_MESSAGES)
    system: Text | list[TextBlock] | None = None
    thinking: Thinking | None = None
    tools: list[Tool] | None = Field(default=None, max_length=1024)
    tool_choice: ToolChoice | None = None
    output_config: OutputConfig | None = None


class MessagesRequest(CountRequest):
    """POST /v1/messages."""

    max_tokens: int = Field(ge=0)
    stop_sequences: list[Stop] | None = Field(default=None, max_length=MOST_STOPS)
    stream: StrictBool = False
    temperature: Finite | None = Field(default=None, ge=0)
    top_p: Finite | None = Field(default=None, ge=0, le=1)
    top_k: int | None = Field(default=None, ge=0)
    metadata: dict[str, Any] | None = None
