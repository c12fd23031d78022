"""The mask of a lazy grammar: a pure function of the answer, cheap to roll back."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edgecs.errors import ConfigError
from edgecs.grammar.lazy import LazyGrammar, LazyMask
from edgecs.grammar.mask import Grammar
from edgecs.grammar.trie import TokenTrie
from edgecs.testing.fakes import ByteTokenizer
from edgecs.text.triggers import Triggers, after_thoughts

# Whole texts as tokens too: triggers begin and end within them, also several at once.
TEXTS = [
    *(bytes([byte]) for byte in range(256)),
    b"",
    b"<c>",
    b"x<c",
    b"c>(<c>",
    b"<c>)<c>(",
    b"<think>",
    b"</think>",
    b"k><c>",
    b'{ "n',
]
END = len(TEXTS)
SIZE = END + 1


class TextTokenizer(ByteTokenizer):
    def __init__(self) -> None:
        super().__init__(SIZE)

    def piece(self, token: int) -> bytes:
        return TEXTS[token] if token < END else b""


def trie() -> TokenTrie:
    tokenizer: Any = TextTokenizer()
    return TokenTrie.of(tokenizer, SIZE)


TRIE = trie()
TRIGGERS = Triggers(("<c>", "<c", "[CALL]"), (("{", '"n'),))
CALL = Grammar.of_lark(
    "test", r'start: ("<c>(" | "<c(" | "[CALL](" | /\{\s*"n/) /[xy]{0,6}/ ")"'
)
SOME = [*range(256, END), *b"<c>([CALxy{ \n", END]
answers = st.lists(st.sampled_from(SOME), max_size=12)


def mask(thinks: bool | None = None) -> LazyMask:
    return LazyGrammar(CALL, TRIGGERS, TextTokenizer().piece, thinks).over(TRIE)


def tokens(answer: list[int]) -> Any:
    return np.array(answer, dtype=np.int32)


def seen(made: LazyMask, answer: list[int]) -> object:
    """What may follow an answer: -inf where a token may not."""
    try:
        return made.mask(np.zeros(SIZE, dtype=np.float32), tokens(answer)).tolist()
    except ConfigError as error:
        return str(error)


def described(answer: list[int], thinks: bool | None) -> object:
    """The same by what the documentation says, searching all of the text every time."""
    text, begin = "", 0
    row = np.zeros(SIZE, dtype=np.float32)
    for i, token in enumerate(answer):
        text += TextTokenizer().piece(token).decode("latin-1")
        start = 0 if thinks is None else after_thoughts(text, open=thinks)
        if start is None:
            continue
        while True:
            at = TRIGGERS.find(text, max(start, begin), first=not begin)
            if at is None:
                break
            prefix = TRIE.of_bytes(text[at:].encode("latin-1"))
            try:
                CALL.over(TRIE).allowed(prefix)
            except ConfigError:
                begin = at + 1
                continue
            inside = np.concatenate((prefix, tokens(answer[i + 1 :])))
            try:
                return CALL.over(TRIE).mask(row, inside).tolist()
            except ConfigError as error:
                return str(error)
    return row.tolist()


@pytest.mark.parametrize("thinks", [None, False, True])
@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 12), answers), min_size=1, max_size=8))
@example([(0, list(b"[CALL](x")), (6, list(b"(")), (5, list(b"x[CALL](y"))])
@example([(0, list(b"<think>a</think>[CALL](")), (12, list(b"</think><c>("))])
@example([(0, [260]), (0, [97, 260])])
def test_every_mask_is_that_of_a_new_one(
    thinks: bool | None, steps: list[tuple[int, list[int]]]
):
    """Each step keeps the beginning of the answer before, and goes on differently."""
    made, answer = mask(thinks), list[int]()
    for kept, more in steps:
        answer = [*answer[:kept], *more]
        found = seen(made, answer)
        assert found == seen(mask(thinks), answer)
        assert found == described(answer, thinks)
        for token in {*more, *b"(x"}:
            try:
                allows = made.allows(tokens(answer), token)
            except ConfigError:
                continue
            assert not isinstance(found, list) or allows == (found[token] == 0)


class Counted(TextTokenizer):
    """Counts the tokens whose text is read."""

    read = 0

    def piece(self, token: int) -> bytes:
        self.read += 1
        return super().piece(token)


@pytest.mark.parametrize("length", [100, 1000])
@given(st.lists(st.integers(0, 8), min_size=2, max_size=6))
@settings(deadline=None, max_examples=10)
def test_a_draft_that_differs_costs_only_its_tokens(length: int, drafts: list[int]):
    tokenizer = Counted()
    made = LazyGrammar(CALL, TRIGGERS, tokenizer.piece).over(TRIE)
    said = list(b"a" * length)
    seen(made, said)
    assert tokenizer.read == length
    for before, now in pairwise(drafts):
        seen(made, said + list(b"b") * before)
        tokenizer.read = 0
        seen(made, said + list(b"c") * now)
        assert tokenizer.read == now


class Watched(str):
    """A text that counts the letters in which something is looked for."""

    letters = 0

    def find(self, what: str, start: Any = 0, end: Any = None) -> int:  # type: ignore[override]
        Watched.letters += len(self) - start
        return super().find(what, start, end)


@given(st.text("a<c>[", max_size=30), st.integers(0, 30))
def test_a_known_text_is_not_searched_again(text: str, known: int):
    """But for the letters with which a trigger may begin that ends in the new text."""
    known = min(known, len(text))
    if TRIGGERS.find(text[:known], first=False) is not None:
        return
    Watched.letters = 0
    found = TRIGGERS.find(Watched(text), first=False, known=known)
    assert found == TRIGGERS.find(text, first=False)
    longest = max(map(len, TRIGGERS.anywhere))
    assert Watched.letters <= len(TRIGGERS.anywhere) * (len(text) - known + longest - 1)


@given(st.text("a</think>", max_size=40), st.integers(0, 40), st.booleans())
def test_thoughts_that_are_known_not_to_end_are_not_searched_again(
    text: str, known: int, is_open: bool
):
    known = min(known, len(text))
    if after_thoughts(text[:known], open=is_open) is not None:
        return
    found = after_thoughts(text, open=is_open, known=known)
    assert found == after_thoughts(text, open=is_open)
