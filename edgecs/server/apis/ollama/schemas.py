"""Request bodies of Ollama's API.

Unknown fields and options are ignored, and so are the options that belong to loading a
model (num_ctx, num_gpu, ...): the server's command line has them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StrictBool

from edgecs.server.answers.body import Body
from edgecs.server.answers.schemas import (
    MOST_LOGPROBS,
    MOST_MESSAGES,
    MOST_STOPS,
    MOST_TEXT,
    Finite,
    Text,
)
from edgecs.server.models.keep_alive import seconds_of

Name = Annotated[str, Field(min_length=1, max_length=1024)]
KeepAlive = Annotated[str, Field(max_length=64)] | Finite
_Stop = Annotated[str, Field(max_length=1024)]


class Options(Body):
    """Settings of an answer."""

    num_predict: int | None = None
    seed: int | None = Field(default=None, ge=-(1 << 63), lt=1 << 63)
    temperature: Finite | None = Field(default=None, ge=0)
    top_k: int | None = None
    top_p: Finite | None = Field(default=None, ge=0, le=1)
    min_p: Finite | None = Field(default=None, ge=0, le=1)
    typical_p: Finite | None = Field(default=None, gt=0, le=1)
    repeat_last_n: int | None = Field(default=None, ge=-1)
    repeat_penalty: Finite | None = Field(default=None, gt=0)
    presence_penalty: Finite | None = None
    frequency_penalty: Finite | None = None
    stop: _Stop | Annotated[list[_Stop], Field(max_length=MOST_STOPS)] | None = None

    @property
    def stops(self) -> list[str]:
        """Stop strings; empty ones do not count."""
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [stop for stop in given if stop]


class Function(Body):
    """The function of a call."""

    name: str = Field(max_length=256)
    arguments: dict[str, Any] = Field(default_factory=dict)


class ToolCall(Body):
    """A call of a tool in an earlier answer."""

    id: str | None = Field(default=None, max_length=256)
    function: Function


class Message(Body):
    """One message of a conversation."""

    role: Literal["system", "user", "assistant", "tool"]
    content: Text | None = None
    thinking: Text | None = None
    images: list[Any] | None = None
    tool_calls: list[ToolCall] | None = Field(default=None, max_length=1024)
    tool_name: str | None = Field(default=None, max_length=256)
    tool_call_id: str | None = Field(default=None, max_length=256)


class _AnswerFields(Body):
    """Fields of chats and generations."""

    model: Name
    stream: StrictBool | None = None
    format: Literal["", "json"] | dict[str, Any] | None = None
    options: Options | None = None
    think: StrictBool | Literal["low", "medium", "high"] | None = None
    keep_alive: KeepAlive | None = None
    logprobs: StrictBool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MOST_LOGPROBS)

    @property
    def unloads(self) -> bool:
        """Whether the model is not kept in memory. Raises ConfigError."""
        return self.keep_alive is not None and seconds_of(self.keep_alive) == 0

    @property
    def streams(self) -> bool:
        """Whether the answer is a stream, as it is unless the client says no."""
        return self.stream is not False


class ChatRequest(_AnswerFields):
    """POST /api/chat. No messages: the model is only loaded."""

    messages: list[Message] = Field(default_factory=list, max_length=MOST_MESSAGES)
    tools: list[dict[str, Any]] | None = Field(default=None, max_length=1024)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to answer."""
        return not self.messages


class GenerateRequest(_AnswerFields):
    """POST /api/generate. No prompt: the model is only loaded.

    context: what an earlier answer returned. raw: the prompt is fed as it is.
    """

    prompt: Text = ""
    suffix: Text | None = None
    system: Text | None = None
    template: Text | None = None
    context: list[int] | None = Field(default=None, max_length=MOST_TEXT)
    images: list[Any] | None = None
    raw: StrictBool = False

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to answer."""
        return not self.prompt and not self.context


class ShowRequest(Body):
    """POST /api/show; `name` is an older name of `model`."""

    model: str = Field(default="", max_length=1024)
    name: str = Field(default="", max_length=1024)
    verbose: StrictBool = False


class PullRequest(Body):
    """POST /api/pull."""

    model: str = Field(default="", max_length=1024)
    name: str = Field(default="", max_length=1024)
    stream: StrictBool | None = None
    insecure: StrictBool | None = None
