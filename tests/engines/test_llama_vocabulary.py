"""The vocabulary of a GGUF, which the threads of a server share."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgecs.engines.llama import tokenizer
from edgecs.engines.llama.tokenizer import open_vocabulary

WAIT = 10.0


@pytest.mark.parametrize("other", ["piece", "spelling"])
def test_threads_that_ask_for_texts_at_once_get_their_own(
    tiny_gguf: Path, other: str, monkeypatch: pytest.MonkeyPatch
):
    """The first call of llama.cpp returns after the second one has written."""
    written, is_first = threading.Event(), threading.local()
    plain: Callable[..., int] = tokenizer.lib.llama_token_to_piece

    def slow(*args: Any) -> int:
        count = plain(*args)
        if getattr(is_first, "yes", False):
            assert written.wait(WAIT)
        return count

    with open_vocabulary(tiny_gguf) as vocabulary:
        a, b = (vocabulary.encode(text, document=False).tolist()[0] for text in "ab")
        monkeypatch.setattr(tokenizer.lib, "llama_token_to_piece", slow)
        found: list[bytes] = []

        def first() -> None:
            is_first.yes = True
            found.append(vocabulary.piece(a))

        thread = threading.Thread(target=first)
        thread.start()
        getattr(vocabulary, other)(b)
        written.set()
        thread.join(WAIT)
        assert found == [b"a"]
        assert vocabulary.piece(a) == b"a"
