"""Routes about the text of a model: its tokens, and its chat template.

Paths and fields are those of llama-server: /tokenize, /detokenize and /apply-template.
"""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from edgecs.chat.conversation import Message
from edgecs.errors import ConfigError
from edgecs.server.answers.requested_tools import told, tool_use
from edgecs.server.answers.schemas import (
    DetokenizeRequest,
    TemplateRequest,
    TokenizeRequest,
    Turn,
)
from edgecs.server.apis.endpoint import Endpoint
from edgecs.server.models.engine import Engine
from edgecs.server.models.served import Served


async def tokenize(
    engine: Served, request: Request, asked: TokenizeRequest, seconds: float
) -> Response:
    """POST /tokenize."""
    return await asyncio.to_thread(_tokens, engine, asked)


def _tokens(engine: Served, asked: TokenizeRequest) -> Response:
    tokens = engine.encode(asked.content, document=asked.add_special).tolist()
    if asked.with_pieces:
        tokens = [{"id": one, "piece": engine.decode([one])} for one in tokens]
    return JSONResponse({"tokens": tokens})


async def detokenize(
    engine: Served, request: Request, asked: DetokenizeRequest, seconds: float
) -> Response:
    """POST /detokenize."""
    text = await asyncio.to_thread(engine.decode, asked.tokens)
    return JSONResponse({"content": text})


async def apply_template(
    engine: Engine, request: Request, asked: TemplateRequest, seconds: float
) -> Response:
    """POST /apply-template."""
    return await asyncio.to_thread(_applied, engine, asked)


def _applied(engine: Engine, asked: TemplateRequest) -> Response:
    use = tool_use(engine.family, asked)
    messages, tools = told(engine.family, asked.messages, use)
    text = engine.render(messages, tools)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            "the messages have half of a surrogate pair: send whole characters"
        ) from error
    reply: dict[str, Any] = {"prompt": text}
    has_calls = any(one.tool_calls or one.role == "tool" for one in asked.messages)
    if asked.with_tokens and (use is not None or has_calls):
        reply |= {"tokens": engine.encode_chat(messages, tools=tools).tolist()}
    elif asked.with_tokens:
        turns = [_turn_of(message) for message in asked.messages]
        prompt = engine.encode_turns(turns, asked.partial)
        reply |= {"tokens": prompt.tokens.tolist(), "again": prompt.again}
    return JSONResponse(reply)


def _turn_of(message: Turn) -> Message:
    plain, ids = message.plain(), message.ids
    return Message(plain["role"], plain["content"], tuple(ids) if ids else None)


ENDPOINTS = (
    Endpoint(
        "/tokenize", tokenize, TokenizeRequest, "Text to ids.", "The ids.", kind=None
    ),
    Endpoint(
        "/detokenize",
        detokenize,
        DetokenizeRequest,
        "Ids to text.",
        "The text.",
        kind=None,
    ),
    Endpoint(
        "/apply-template",
        apply_template,
        TemplateRequest,
        "Messages to the text of a prompt.",
        "The text.",
    ),
)
