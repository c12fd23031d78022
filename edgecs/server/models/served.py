"""What all models of a server have: a name, a vocabulary, limits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from edgecs.core.context import Tokens
from edgecs.errors import ConfigError

if TYPE_CHECKING:
    from edgecs.engines.llama.model import LlamaModel


class _Loaded(Protocol):
    @property
    def model(self) -> LlamaModel: ...


class Served(ABC):
    """A loaded model: `Engine` writes text, `EmbeddingEngine` embeds it.

    n_ctx: most tokens of a conversation or text. slots: how many are answered at once.
    created: `time.time` of loading.
    """

    name: str
    created: int
    n_ctx: int
    slots: int
    loaded: _Loaded

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Ids of tokens go from 0 to one less."""

    @abstractmethod
    def cancel(self) -> None:
        """End all current work soon."""

    @property
    def is_lost(self) -> bool:
        """Whether it cannot be used any more, as a worker with its layers was lost."""
        return self.loaded.model.is_lost

    @property
    def chat_template(self) -> str | None:
        """The source of the model's template."""
        return self.loaded.model.vocabulary.chat_template

    def encode(self, text: str, *, document: bool = True) -> Tokens:
        """The ids of a text; document: with the tokens that begin a document."""
        return self.loaded.model.vocabulary.encode(text, document=document)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of some ids. Raises ConfigError for one that does not exist."""
        self.check_ids(tokens)
        data = b"".join(map(self.loaded.model.vocabulary.piece, tokens))
        return data.decode("utf-8", "replace")

    def check_ids(self, tokens: Sequence[int]) -> None:
        """Raises ConfigError for an id that does not exist."""
        size = self.vocab_size
        for token in tokens:
            if not 0 <= token < size:
                shown = str(token)[:24]
                raise ConfigError(
                    f"token {shown} does not exist: ids go from 0 to {size - 1}"
                )

    def spelling(self, token: int) -> str:
        """The spelling of a token, also of a control token."""
        return self.loaded.model.vocabulary.spelling(token)

    def piece(self, token: int) -> bytes:
        """The bytes of a token."""
        return self.loaded.model.vocabulary.piece(token)
