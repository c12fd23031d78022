"""Chat templates: messages in, the prompt text the model was trained on out.

A GGUF comes from anywhere, and its template is a program: it runs in Jinja's sandbox,
has nothing to reach for, and neither time nor memory without end.
"""

from __future__ import annotations

import ctypes
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from edgecs.context import Tokens
from edgecs.errors import ConfigError, ModelError
from edgecs.text import Tokenizer

_SOURCE = 1 << 20  # characters of a template
_TEXT = 16 << 20  # characters that it may write
_SECONDS = 5.0  # that it may take

_REFUSALS = (TemplateError, ArithmeticError, TypeError, ValueError, LookupError)

Message = Mapping[str, str]
"""{"role": "system" | "user" | "assistant", "content": text}."""


class ChatTemplate:
    """The template of a model, ready to render conversations."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        if not tokenizer.chat_template:
            raise ModelError(
                "this model has no chat template: use --raw to feed the text as it is"
            )
        if len(tokenizer.chat_template) > _SOURCE:
            raise ModelError(
                f"the chat template has {len(tokenizer.chat_template)} characters, "
                f"more than {_SOURCE}: use --raw to feed the text as it is"
            )
        self._tokenizer = tokenizer
        environment = _Sandbox(
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

        def write() -> str:
            return self._write(
                messages=[dict(message) for message in messages],
                add_generation_prompt=True,
                bos_token=self._tokenizer.bos,
                eos_token=self._tokenizer.eos,
                tools=None,
            )

        try:
            return _within(_SECONDS, write)
        except (
            TemplateError,
            ArithmeticError,
            TypeError,
            ValueError,
            LookupError,
        ) as e:
            raise ConfigError(
                f"the chat template refuses this conversation: {e}"
            ) from e
        except (TimeoutError, MemoryError, RecursionError) as error:
            raise ModelError(
                f"the chat template was stopped ({error}): use another model, or --raw "
                "to feed the text as it is"
            ) from error

    def _write(self, **values: Any) -> str:
        pieces, size = [], 0
        for piece in self._template.generate(**values):
            pieces.append(piece)
            size += len(piece)
            if size > _TEXT:
                raise MemoryError(f"it writes more than {_TEXT} characters")
        return "".join(pieces)

    def encode(self, messages: Sequence[Message]) -> Tokens:
        """The conversation as ids."""
        return self.encode_text(self.render(messages))

    def encode_text(self, text: str) -> Tokens:
        """The beginning of a conversation as ids.

        BOS is not doubled if the template writes it.
        """
        bos = self._tokenizer.bos
        has_bos = bool(bos) and text.startswith(bos)
        return self._tokenizer.encode(text, document=not has_bos)


class _Sandbox(ImmutableSandboxedEnvironment):
    """Refuses the operators that make much of little."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Numbers may be multiplied; texts and lists may not grow without end."""
        if operator == "**" and abs(right) > 64:
            raise MemoryError("it computes a huge power")
        for many, times in ((left, right), (right, left)):
            sized = isinstance(many, (str, bytes, list, tuple))
            if sized and len(many) * int(times) > _TEXT:
                raise MemoryError(f"it repeats something up to {_TEXT} times")
        return super().call_binop(context, operator, left, right)


def _within(seconds: float, work: Callable[[], str]) -> str:
    """What `work` returns or raises; TimeoutError where it takes longer.

    It runs in a thread of its own, which is told to end when its time is over.
    """
    done: list[str] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            done.append(work())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, name="chat template", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        number = ctypes.c_ulong(thread.ident or 0)
        kind = ctypes.py_object(TimeoutError)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(number, kind)
        raise TimeoutError(f"it takes longer than {seconds:g} seconds")
    if failed:
        raise failed[0]
    return done[0]


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)
