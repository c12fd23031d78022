"""Chat templates: render messages as the prompt text of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from edgecs.core.context import Tokens
from edgecs.errors import ModelError
from edgecs.text.control_tokens import MessageGuard
from edgecs.text.detokenizer import Tokenizer
from edgecs.text.template_process import RAW, Renderer

_SOURCE = 1 << 20  # characters of a template

Message = Mapping[str, Any]
"""{"role": "system" | "user" | "assistant" | "tool", "content": text}; JSON values.

An assistant's message may have `tool_calls`, in OpenAI's form but with arguments as
objects, and a tool's has the `tool_call_id` and the `name`.
"""


class ChatTemplate:
    """The compiled template of a model; may be used by several threads.

    Only the template writes control tokens: `encode` splits their spellings in
    messages. A child process renders conversations, and ends with this object.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        if not tokenizer.chat_template:
            raise ModelError(f"this model has no chat template: {RAW}")
        if len(tokenizer.chat_template) > _SOURCE:
            raise ModelError(
                f"the chat template has {len(tokenizer.chat_template)} characters, "
                f"more than {_SOURCE}: {RAW}"
            )
        self._tokenizer = tokenizer
        self._renderer = Renderer(tokenizer.chat_template)

    @cached_property
    def guard(self) -> MessageGuard:
        """Protects texts of messages that are rendered for `encode_text`."""
        return MessageGuard(self._tokenizer.controls)

    def render(
        self,
        messages: Sequence[Message],
        *,
        thinking: bool | None = None,
        effort: str | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> str:
        """The conversation as text, ending where the answer begins.

        thinking: whether the model is to think first, for templates that ask; None:
        the template decides. effort: how long to think, for templates that know
        `reasoning_effort`; it is not protected as messages are. tools: in OpenAI's
        form, for templates that know them.

        Raises ConfigError if the template refuses the conversation, ModelError if
        it takes too much time or memory.
        """
        return self._renderer.render(
            {
                "messages": [dict(message) for message in messages],
                "add_generation_prompt": True,
                "bos_token": self._tokenizer.bos,
                "eos_token": self._tokenizer.eos,
                "tools": [dict(tool) for tool in tools] or None,
                **({} if thinking is None else {"enable_thinking": thinking}),
                **({} if effort is None else {"reasoning_effort": effort}),
            }
        )

    def close(self) -> None:
        """Ends the process; the next render starts another one."""
        self._renderer.close()

    def encode(
        self,
        messages: Sequence[Message],
        beginning: str = "",
        *,
        thinking: bool | None = None,
        effort: str | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> Tokens:
        """The conversation as ids; see `render`.

        beginning: text of the answer that follows.
        """
        protected = [self.guard.protect_values(dict(one)) for one in messages]
        known = self.guard.protect_values([dict(tool) for tool in tools])
        text = self.render(protected, thinking=thinking, effort=effort, tools=known)
        return self.encode_text(text + self.guard.protect(beginning))

    def encode_text(self, text: str, *, first: bool = True) -> Tokens:
        """A rendered text as ids, with protected texts in it.

        first: it begins the conversation. BOS is not doubled if the template writes it.
        """
        bos, encode = self._tokenizer.bos, self._tokenizer.encode
        has_bos = bool(bos) and text.startswith(bos)
        begin, *more = self.guard.parts(text)
        parts = [encode(begin, document=first and not has_bos)]
        parts += [encode(part, document=False) for part in more]
        return parts[0] if not more else np.concatenate(parts)
