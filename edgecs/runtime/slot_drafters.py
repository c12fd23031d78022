"""The drafters of every slot of a server.

A slot is a conversation with a sequence of the target. Drafters that are models share
their weights; each conversation has its own cells, and a head also the states of its
own sequence. A drafter is in as many slots as the memory has room for.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

import psutil

from edgecs.engines.offload import MARGIN
from edgecs.errors import Cancelled, EdgecsError
from edgecs.runtime.loader import LoadedDrafter

_MEMORY = "memory is short"


class SlotDrafters:
    """Drafters by slot. Those of slot 0 are `drafters` themselves.

    slots: how many there are. closing: closes the models that are made for the other
    slots; their weights belong to `drafters`, which must be closed after it.
    """

    def __init__(
        self, drafters: Sequence[LoadedDrafter], slots: int, closing: ExitStack
    ) -> None:
        self._slots = [list(drafters), *([] for _ in range(1, slots))]
        self._about: list[str] = []
        free = psutil.virtual_memory().available - MARGIN
        for drafter in drafters:
            why, first = "", drafter.size
            for slot in range(1, slots):
                if drafter.beside is not None:
                    free -= first + drafter.size
                    first = 0  # that of slot 0 is allocated, and partly used
                more = _made(drafter, slot, free, closing)
                if isinstance(more, str):
                    why = more
                    break
                self._slots[slot].append(more)
            if slots > 1:
                self._about.append(self._told(drafter, why))

    def of(self, slot: int) -> list[LoadedDrafter]:
        """The drafters of a slot, the best first."""
        return self._slots[slot]

    @property
    def about(self) -> str:
        """Which drafter is in which slots, and its memory there; empty: there is none.

        It says nothing of a single slot, which has all drafters.
        """
        return "; ".join(self._about)

    def _told(self, drafter: LoadedDrafter, why: str) -> str:
        count = sum(
            any(one.name == drafter.name for one in those) for those in self._slots
        )
        size = f"{drafter.size / (1 << 20):.1f} MiB for each"
        if count == len(self._slots):
            return f"{drafter.name} drafts in all slots, {size}"
        where = "slot 0" if count == 1 else f"slots 0 to {count - 1}"
        return f"{drafter.name} drafts in {where} only, as {why} ({size})"


def _made(
    drafter: LoadedDrafter, slot: int, free: int, closing: ExitStack
) -> LoadedDrafter | str:
    """A drafter for another slot, or why there is none. free: bytes."""
    if drafter.beside is None:
        return drafter if slot < drafter.model.sequences else _MEMORY
    if free < 0:
        return _MEMORY
    try:
        model = drafter.beside(slot)
    except Cancelled:
        raise
    except (EdgecsError, MemoryError) as error:
        return str(error) or _MEMORY
    close = getattr(model, "close", None)
    if close is not None:
        closing.callback(close)
    return replace(drafter, model=model)
