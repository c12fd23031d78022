"""Request fields about tools, in the form of OpenAI's chat completions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StrictBool

from edgecs.server.answers.body import Body

MOST_TOOLS, MOST_ID = 1024, 256
_Name = Annotated[str, Field(max_length=MOST_ID)]


class FunctionSpec(Body):
    """A function that may be called. Its arguments always match the schema.

    strict: ignored, as arguments are constrained without it.
    """

    name: _Name
    description: str | None = Field(default=None, max_length=1 << 22)
    parameters: dict[str, Any] | None = None
    strict: StrictBool | None = None


class ToolSpec(Body):
    """A tool; only functions are supported."""

    type: Literal["function"] = "function"
    function: FunctionSpec


class _Named(Body):
    name: _Name


class NamedChoice(Body):
    """The tool that must be called."""

    type: Literal["function"]
    function: _Named


ToolChoice = Literal["none", "auto", "required"] | NamedChoice


class CalledFunction(Body):
    """What was called. arguments: JSON as text; some clients send the object."""

    name: _Name
    arguments: Annotated[str, Field(max_length=1 << 22)] | dict[str, Any] = ""


class CalledTool(Body):
    """A call in an earlier answer."""

    id: _Name = ""
    type: Literal["function"] = "function"
    function: CalledFunction


class ToolFields(Body):
    """The tools of a request, and whether they may or must be called."""

    tools: list[ToolSpec] | None = Field(default=None, max_length=MOST_TOOLS)
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: StrictBool | None = None
