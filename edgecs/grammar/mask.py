"""Constrains an answer by a grammar or a JSON schema, as a mask over the vocabulary.

The mask is a pure function of the answer's tokens, so it may precede any rule that
chooses a token, and a draft is treated as if decoded token by token. llguidance does
the parsing; this module is independent of models, sampling and caches.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile

import llguidance
import numpy as np
from numpy.typing import NDArray

from edgecs.core.context import Tokens
from edgecs.core.draft import Row
from edgecs.errors import ConfigError
from edgecs.grammar.gbnf import parse
from edgecs.grammar.lark import as_lark
from edgecs.grammar.schema_limits import check_automata
from edgecs.grammar.trie import TokenTrie

MOST_LETTERS = 1 << 18  # of a grammar or a schema
MOST_NESTED = 1000  # levels of a schema with its $ref, over which llguidance recurses

# White space between two parts of a JSON text, as in llama.cpp: without a limit small
# models write blanks for ever.
WHITESPACE = r" |\n{1,2}[ \t]{0,20}"

_HEAD = '%llguidance {"no_forcing": true}'

# An answer that exceeds a limit ends in the middle, so the limits only stop what would
# take seconds. The defaults allow less than 10 ms per mask.
_LIMITS = llguidance.LLParserLimits(
    max_items_in_row=100_000,
    step_lexer_fuel=20_000_000,
    step_max_items=20_000_000,
    verbose_errors=False,
)


@dataclass(frozen=True)
class Grammar:
    """A valid grammar for answers, made by `gbnf` or `json_schema`.

    Both raise ConfigError for an invalid one.
    """

    source: str  # its name in messages
    lark: str  # in llguidance's format

    @staticmethod
    def gbnf(text: str | bytes) -> Grammar:
        """A grammar in llama.cpp's notation; the answer matches `root`."""
        return _checked("grammar", as_lark(parse(_decoded(text, "grammar"))))

    @staticmethod
    def json_schema(schema: str | bytes | bool | Mapping[str, object]) -> Grammar:
        """JSON that matches a schema, given as text or parsed.

        `{}` is any JSON, `{"type": "object"}` any object. Members come in the order of
        `properties`. Unsupported parts of a schema are refused.
        """
        if isinstance(schema, str | bytes):
            schema = _loaded(_decoded(schema, "JSON schema"))
        if isinstance(schema, Mapping):
            own = schema.get("x-guidance", {})
            if isinstance(own, Mapping):
                defaults = {"whitespace_pattern": WHITESPACE}
                schema = {**schema, "x-guidance": {**defaults, **own}}
        try:
            text = json.dumps(schema, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise ConfigError(
                f"the JSON schema is not JSON: {error}; give an object of plain values"
            ) from error
        _check_size(text, "JSON schema")
        _check_depth(text)
        check_automata(schema)
        return _checked("JSON schema", f"{_HEAD}\nstart: %json {text}\n")

    @staticmethod
    def of_lark(source: str, rules: str) -> Grammar:
        """A grammar in llguidance's notation that starts at `start`.

        source: its name in messages.
        """
        _check_size(rules, source)
        return _checked(source, f"{_HEAD}\n{rules}")

    def over(self, trie: TokenTrie) -> GrammarMask:
        """The mask for one answer in a vocabulary."""
        return GrammarMask(self, trie)


class GrammarMask:
    """Which tokens may follow an answer: a pure function that caches its last state.

    Raises ConfigError for an answer that the grammar does not allow.
    """

    def __init__(self, grammar: Grammar, trie: TokenTrie) -> None:
        self._grammar = grammar
        self._trie = trie
        self._at: Tokens  # the tokens that the matcher has taken
        self._restart()
        self._ends = np.fromiter(trie.ends, np.int64)
        self.allowed(self._at)  # a grammar that no answer can match fails here

    def allowed(self, answer: Tokens) -> NDArray[np.bool_]:
        """Which tokens may follow, bool [vocabulary]; at least one of them may."""
        ended = self._go(answer)
        size = self._trie.size
        if ended or self._matcher.is_stopped():
            found = np.zeros(size, dtype=np.bool_)
            found[self._ends] = True
            return found
        packed = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._refuse_if_stuck()
        bits = np.unpackbits(packed, count=size + 1, bitorder="little").view(np.bool_)
        found = bits[:size]
        found[self._ends] = bits[size]
        if not found.any():  # only single bytes fit, which are no tokens
            raise self._stuck("no token fits")
        return found

    def allows(self, answer: Tokens, token: int) -> bool:
        """Whether `token` may follow; several times as fast as a mask."""
        ended = self._go(answer)
        if ended or token in self._trie.ends:
            accepted = ended or self._matcher.is_accepting()
            return token in self._trie.ends and accepted
        if token < 0 or not self._trie.may_match(token) or self._matcher.is_stopped():
            return False
        fits = self._matcher.validate_tokens([token]) == 1
        self._refuse_if_stuck()
        return fits

    def mask(self, row: Row, answer: Tokens) -> Row:
        """A copy of `row` with -inf where a token may not follow.

        A row that is wider than the vocabulary is padded; padding may not follow.
        """
        allowed = self.allowed(answer)[: row.size]
        masked = np.full_like(row, -np.inf)
        np.copyto(masked[: allowed.size], row[: allowed.size], where=allowed)
        return masked

    def _go(self, answer: Tokens) -> bool:
        """Moves the matcher to the end of `answer`; returns whether that has ended."""
        if self._matcher.is_error():
            self._restart()
        common = common_length(self._at, answer)
        back = self._at.size - common
        if back and not self._matcher.rollback(back):
            self._restart()
            common = 0
        new = answer[common:].tolist()
        texts = [*map(self._trie.inner, takewhile(self._trie.may_match, new))]
        taken = self._matcher.try_consume_tokens(texts) if texts else 0
        self._at = np.array(answer[: common + taken])
        if taken == len(new):
            return False
        self._refuse_if_stuck()
        if self._matcher.is_accepting():
            taken += len(list(takewhile(self._trie.ends.__contains__, new[taken:])))
        if taken < len(new):
            raise ConfigError(
                f"the answer does not match the {self._grammar.source} at token "
                f"{common + taken} (id {new[taken]}): continue only with allowed tokens"
            )
        return True

    def _restart(self) -> None:
        self._matcher = llguidance.LLMatcher(
            self._trie.tokenizer, self._grammar.lark, log_level=0, limits=_LIMITS
        )
        self._at = np.empty(0, dtype=np.int32)
        if self._matcher.is_error():
            raise _refusal(self._grammar.source, self._matcher.get_error())

    def _refuse_if_stuck(self) -> None:
        if self._matcher.is_error():
            raise self._stuck(_sentence(self._matcher.get_error()))

    def _stuck(self, why: str) -> ConfigError:
        return ConfigError(
            f"no token of this model matches the {self._grammar.source}"
            f" after {self._at.size} tokens of the answer ({why}): make the "
            f"{self._grammar.source} less strict or simpler"
        )


def common_length(a: Tokens, b: Tokens) -> int:
    """Length of the longest common prefix."""
    length = min(a.size, b.size)
    differs = a[:length] != b[:length]
    at = int(differs.argmax()) if length else 0
    return at if length and differs[at] else length


def _decoded(text: str | bytes, source: str) -> str:
    """Decodes and checks a text. Raises ConfigError."""
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise ConfigError(
                f"the {source} is not text in UTF-8 (byte {error.start}): give another "
                "file"
            ) from error
    _check_size(text, source)
    if not text.strip():
        raise ConfigError(f"the {source} is empty: give one, or leave it out")
    if "\0" in text:
        raise ConfigError(
            f"the {source} is not text (it has a zero byte at {text.index(chr(0))}): "
            "give another file"
        )
    return text


def _check_size(text: str, source: str) -> None:
    if len(text) > MOST_LETTERS:
        raise ConfigError(
            f"the {source} has {len(text)} characters, more than the {MOST_LETTERS} "
            "that edgecs takes: make it smaller"
        )


def _check_depth(text: str) -> None:
    """Raises ConfigError if $ref may nest the schema too deeply."""
    refs = len(set(re.findall(r'"\$ref": ("(?:[^"\\]|\\.)*")', text)))
    deepest = depth = 0
    for bracket in re.findall(r"[\[{}\]]", re.sub(r'"(?:[^"\\]|\\.)*"', "", text)):
        depth += 1 if bracket in "[{" else -1
        deepest = max(deepest, depth)
    if refs and (refs + 1) * deepest > MOST_NESTED:
        raise ConfigError(
            f"the JSON schema may nest too deeply ({refs} different $ref in {deepest} "
            "levels): replace some of them by what they refer to"
        )


def _loaded(text: str) -> bool | Mapping[str, object]:
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"the JSON schema is not JSON: {error}; correct it there"
        ) from error
    if not isinstance(schema, bool | dict):
        raise ConfigError(
            f"a JSON schema is an object, got {text.strip()[:20]!r}: write one such as "
            '{"type": "object"}'
        )
    return schema


def _checked(source: str, text: str) -> Grammar:
    problem = llguidance.LLMatcher.validate_grammar(text, limits=_LIMITS)
    if problem:
        raise _refusal(source, problem)
    return Grammar(source, text)


def _refusal(source: str, problem: str) -> ConfigError:
    return ConfigError(
        f"the {source} cannot be used: {_sentence(problem)}; change that"
    )


def _sentence(problem: str) -> str:
    """llguidance's message, without positions in generated text."""
    said = re.split(r"\n   1 \||\n<", problem)[0]
    said = re.sub(r"^(at )?\d+\(\d+\): ", "", said)
    said = said.removeprefix("failed to compile JSON schema: ")
    return " ".join(said.split())[:300]
