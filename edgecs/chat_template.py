"""Chat templates: messages in, the prompt text the model was trained on out.

A GGUF comes from anywhere, and its template is a program: it runs in Jinja's sandbox
and has nothing to reach for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import NoReturn

from jinja2 import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from edgecs.context import Tokens
from edgecs.errors import ConfigError, ModelError
from edgecs.text import Tokenizer

Message = Mapping[str, str]
"""{"role": "system" | "user" | "assistant", "content": text}."""


class ChatTemplate:
    """The template of a model, ready to render conversations."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        if not tokenizer.chat_template:
            raise ModelError(
                "this model has no chat template: use --raw to feed the text as it is"
            )
        self._tokenizer = tokenizer
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
        )
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        environment.filters["tojson"] = lambda value, indent=None: json.dumps(
            value, ensure_ascii=False, indent=indent
        )
        try:
            self._template = environment.from_string(tokenizer.chat_template)
        except TemplateError as error:
            raise ModelError(f"the chat template is broken: {error}") from error

    def render(self, messages: Sequence[Message]) -> str:
        """The conversation as text, ending where the assistant is to speak."""
        try:
            return self._template.render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=True,
                bos_token=self._tokenizer.bos,
                eos_token=self._tokenizer.eos,
                tools=None,
            )
        except (TemplateError, TypeError, ValueError, LookupError) as error:
            raise ConfigError(
                f"the chat template refuses this conversation: {error}"
            ) from error

    def encode(self, messages: Sequence[Message]) -> Tokens:
        """The conversation as ids; BOS is not doubled if the template writes it."""
        text = self.render(messages)
        bos = self._tokenizer.bos
        has_bos = bool(bos) and text.startswith(bos)
        return self._tokenizer.encode(text, document=not has_bos)


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)
