"""Open the user's store for a loaded target."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from edgecs.core.context import Tokens
from edgecs.errors import ConfigError
from edgecs.hub.compatibility import vocabulary_hash
from edgecs.memory.keeping import Memory, Wanted
from edgecs.memory.store import UserStore
from edgecs.runtime.loader import Loaded


def tokenizer_of(loaded: Loaded) -> str:
    """The identity of a target's tokenizer; renders its whole vocabulary."""
    return vocabulary_hash(loaded.model.vocabulary.pieces())


def open_memory(
    wanted: Wanted, loaded: Loaded, tell: Callable[[str], None]
) -> tuple[Memory | None, str]:
    """The store of a recipe for a target, and a description; None: it is not usable.

    Texts that were added without a model are tokenised now, up to a limit. tell: is
    given messages for the user, such as why there is no store.
    """
    vocabulary = loaded.model.vocabulary
    try:
        store = UserStore(wanted.folder, tokenizer_of(loaded), loaded.target.vocab_size)
    except ConfigError as error:
        tell(f"no memory is used: {error}")
        return None, "memory: none"

    def encode(text: str) -> Tokens:
        return vocabulary.encode(text, document=False, special=False)

    def text_of(tokens: Tokens) -> str:
        pieces = map(vocabulary.piece, tokens.tolist())
        return b"".join(pieces).decode("utf-8", "replace")

    try:
        with suppress(ConfigError):  # a full disk: the others can be used
            read, left = store.read(encode)
            if read and left:
                tell(
                    f"{read} texts of the memory were read for this model, the other "
                    f"{left} will be at its next starts"
                )
        name = loaded.model.path.stem
        memory = Memory(store, wanted, source=name, text_of=text_of, tell=tell)
    except BaseException:
        store.close()
        raise
    how = ", for reading only" if store.read_only else ""
    return memory, f"memory: {store.tokens} tokens in {wanted.folder}{how}"
