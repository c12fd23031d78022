"""Open what a memory has for a loaded target: texts, phrases, and recycled rows."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple

from edgecs.calibrate.profile import fingerprint
from edgecs.calibrate.speculation_profile import SpeculationProfile
from edgecs.core.context import Tokens
from edgecs.errors import ConfigError
from edgecs.hub.compatibility import vocabulary_hash
from edgecs.memory.database import FILE
from edgecs.memory.keeping import Memory, Wanted
from edgecs.memory.model_files import Identity
from edgecs.memory.phrases import Phrases, open_phrases
from edgecs.memory.recycled import KeptTable
from edgecs.memory.store import UserStore
from edgecs.runtime.loader import Loaded


class Stores(NamedTuple):
    """What a target drafts from besides the conversations of its process.

    about: a description. Either is None if there is none, or it cannot be used.
    """

    memory: Memory | None
    phrases: Phrases | None
    about: str

    def give(self, speculation: SpeculationProfile) -> None:
        """Have the sessions of a target use the phrases and the table."""
        speculation.phrases = self.phrases
        if self.memory and self.memory.table:
            speculation.recycling = self.memory.table.table


def identity_of(loaded: Loaded) -> Identity:
    """What files of a memory depend on; renders the target's whole vocabulary."""
    path = loaded.model.path
    tokenizer = vocabulary_hash(loaded.model.vocabulary.pieces())
    return Identity(path.stem, fingerprint(path), tokenizer, loaded.target.vocab_size)


def open_memory(wanted: Wanted, loaded: Loaded, tell: Callable[[str], None]) -> Stores:
    """The store of a recipe for a target, its phrases and its table.

    Texts that were added without a model are tokenised now, up to a limit. tell: is
    given messages for the user, such as why there is no store.
    """
    model, phrases = identity_of(loaded), None
    try:
        phrases = open_phrases(wanted.folder, model)
    except ConfigError as error:
        tell(str(error))
    memory = None
    # Who keeps nothing and has nothing needs no database.
    if wanted.keeps or (wanted.folder / FILE).exists():
        memory = _opened(wanted, loaded, model, tell)
    return Stores(memory, phrases, _about(wanted, memory, phrases))


def _about(wanted: Wanted, memory: Memory | None, phrases: Phrases | None) -> str:
    parts = list[str]()
    if memory:
        how = ", for reading only" if memory.store.read_only else ""
        parts.append(f"{memory.store.tokens} tokens in {wanted.folder}{how}")
    if phrases:
        parts.append(f"{phrases.tokens} tokens of the model's phrases")
    return f"memory: {', '.join(parts) or 'none'}"


def _opened(
    wanted: Wanted, loaded: Loaded, model: Identity, tell: Callable[[str], None]
) -> Memory | None:
    """The user's store with its table; None: it is not usable."""
    vocabulary = loaded.model.vocabulary
    try:
        store = UserStore(wanted.folder, model.tokenizer, model.vocab_size)
    except ConfigError as error:
        tell(f"no memory is used: {error}")
        return None

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
        table = None
        if wanted.allowed():  # it shows what was said, as answers do
            table = KeptTable(
                wanted.folder,
                model,
                writes=wanted.keeps and not store.read_only,
                allowed=wanted.allowed,
            )
        return Memory(
            store,
            wanted,
            source=model.name,
            text_of=text_of,
            tell=tell,
            table=table,
        )
    except BaseException:
        store.close()
        raise
