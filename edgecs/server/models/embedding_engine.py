"""A loaded embedding model for the server: a queue in front of one context."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgecs.core.context import Tokens
from edgecs.errors import Cancelled, ConfigError
from edgecs.runtime.embedding import LoadedEmbedder
from edgecs.server.batching.job import Busy
from edgecs.server.models.served import Served


class Embedded(NamedTuple):
    """Embeddings, one a row, and the number of tokens they were computed from."""

    rows: NDArray[np.float32]
    tokens: int


class EmbeddingEngine(Served):
    """Computes the embeddings of one request after the other, in a thread.

    waiting: length of the queue. Belongs to an event loop, but for `close`.
    """

    loaded: LoadedEmbedder
    slots = 1

    def __init__(self, loaded: LoadedEmbedder, name: str, *, waiting: int) -> None:
        self.loaded, self.name = loaded, name
        self.created, self.n_ctx = int(time.time()), loaded.embedder.n_ctx
        self.width = loaded.embedder.width
        self.requests = self.texts = self.tokens = 0  # finished ones
        self._waiting, self._open = waiting, list[threading.Event]()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="edgecs-embeddings")
        self._tail = self._count_tail()

    @property
    def vocab_size(self) -> int:
        """Ids of tokens go from 0 to one less."""
        return self.loaded.embedder.vocab_size

    @property
    def busy(self) -> int:
        """Number of requests that are computed or wait."""
        return len(self._open)

    def tokens_of(self, text: str | Sequence[int], *, truncate: bool) -> Tokens:
        """The ids of a text, with those that its model expects around it.

        truncate: leave out its end if it is too long; the ids after a text stay. Raises
        ConfigError for an empty text and for ids that do not exist.
        """
        if isinstance(text, str):
            ids, tail = self.encode(text), self._tail
        else:
            self.check_ids(text)
            ids, tail = np.array(text, dtype=np.int32), 0
        if not ids.size:
            raise ConfigError("a text is empty: give some text")
        if truncate and ids.size > self.n_ctx:
            head = ids[: self.n_ctx - tail]
            ids = np.concatenate([head, ids[ids.size - tail :]])
        return ids

    def _count_tail(self) -> int:
        """How many ids follow every text, such as BERT's [SEP]."""
        some, none = self.encode("a").tolist(), self.encode("").tolist()
        same = 0
        while (
            same < min(len(some) - 1, len(none)) and some[-1 - same] == none[-1 - same]
        ):
            same += 1
        return min(same, self.n_ctx - 1)

    async def embed(self, texts: Sequence[Tokens], seconds: float) -> Embedded:
        """The embeddings of some texts, not normalised.

        seconds: time limit. Cancelling it, or the time limit, ends the work before its
        next call. Raises Busy, ContextFull, ModelError, Cancelled.
        """
        if self.busy > self._waiting:
            raise Busy(f"{self.busy - 1} requests are already waiting: retry later")
        stop, until = threading.Event(), time.monotonic() + seconds
        self._open.append(stop)

        def unwanted() -> bool:
            return stop.is_set() or time.monotonic() > until

        embed = self.loaded.embedder.embed
        loop = asyncio.get_running_loop()
        try:
            rows = await loop.run_in_executor(self._thread, embed, texts, unwanted)
        except Cancelled:
            raise Cancelled(
                "the embeddings were cancelled, or not finished in time"
            ) from None
        finally:
            stop.set()
            self._open.remove(stop)
        tokens = sum(text.size for text in texts)
        self.requests, self.texts = self.requests + 1, self.texts + len(texts)
        self.tokens += tokens
        return Embedded(rows, tokens)

    def cancel(self) -> None:
        """End all requests before their next call."""
        for stop in self._open:
            stop.set()

    def close(self) -> None:
        """End all requests, and wait for that."""
        self.cancel()
        self._thread.shutdown(cancel_futures=True)
