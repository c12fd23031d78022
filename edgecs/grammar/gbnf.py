"""A parser of GBNF, the grammar format of llama.cpp: text in, rules out.

This module handles only the notation; `lark` converts the rules for llguidance.

llguidance 1.9.1 has a converter too, `gbnf_to_lark`, but it changes what a grammar
allows: it refuses "ab" under `root ::= x "b"` with `x ::= [ab]+`, "1=1\\n" under
llama.cpp's arithmetic example, and a newline for `.`, and it ignores the first of two
rules that have the same name. Its text for `"\\u00e9"`, `"a"{0,0} "b"` and `("a"+)*` is
not valid, and a rule named `start` is an error.

>>> parse('root ::= "a" rest?   # comment\\nrest ::= [b-d]{2,}')["root"]
Seq(parts=(Chars(ranges=((97, 97),)), Repeat(part=Ref(name='rest'), least=0, most=1)))
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from edgecs.errors import ConfigError

Ranges = tuple[tuple[int, int], ...]
"""Ranges of code points, ends included, ascending and not adjacent."""

LAST = 0x10FFFF
MOST_REPEATS = 2000  # as llama.cpp
MOST_NESTED = 100
MOST_RULES = 500  # llguidance recurses over them, and a chain exhausts the stack


@dataclass(frozen=True, slots=True)
class Chars:
    """One character out of a set."""

    ranges: Ranges


@dataclass(frozen=True, slots=True)
class Ref:
    """A reference to the rule of that name."""

    name: str


@dataclass(frozen=True, slots=True)
class Seq:
    """The parts in order; none: the empty text."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Alt:
    """One of the parts."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Repeat:
    """Repetitions of a part. most: None is unlimited."""

    part: Node
    least: int
    most: int | None


Node = Chars | Ref | Seq | Alt | Repeat


def parse(text: str) -> dict[str, Node]:
    """The rules by name, in order; all references are defined, and so is `root`."""
    rules = _Reader(text).rules()
    if len(rules) > MOST_RULES:
        raise ConfigError(
            f"the grammar has {len(rules)} rules, more than the {MOST_RULES} that "
            "edgecs takes: make it smaller"
        )
    for name, rule in rules.items():
        for used in sorted(references(rule) - rules.keys()):
            raise ConfigError(
                f"the grammar has no rule {used!r}, which {name!r} uses: define it or "
                "correct the name"
            )
    if "root" not in rules:
        names = ", ".join(list(rules)[:5]) or "nothing"
        raise ConfigError(
            f"the grammar has no rule 'root', where every answer begins, only {names}: "
            'write one such as root ::= "yes" | "no"'
        )
    if "root" not in _ending(rules):
        raise ConfigError(
            "the grammar's 'root' never ends, so no answer could end: give one of its "
            "rules an alternative without recursion"
        )
    return rules


def _ending(rules: dict[str, Node]) -> set[str]:
    """The rules that match at least one text."""
    found: set[str] = set()

    def ends(node: Node) -> bool:
        match node:
            case Ref(name):
                return name in found
            case Seq(parts):
                return all(map(ends, parts))
            case Alt(parts):
                return any(map(ends, parts))
            case Repeat(part, least):
                return not least or ends(part)
        return True

    while new := {name for name in rules.keys() - found if ends(rules[name])}:
        found |= new
    return found


def references(node: Node) -> set[str]:
    """Names of the rules that a node refers to directly."""
    match node:
        case Ref(name):
            return {name}
        case Seq(parts) | Alt(parts):
            return set[str]().union(*map(references, parts))
        case Repeat(part):
            return references(part)
    return set()


def normal(ranges: list[tuple[int, int]]) -> Ranges:
    """Sorts and merges ranges, without surrogates, which no text has."""
    whole: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if whole and low <= whole[-1][1] + 1:
            whole[-1] = (whole[-1][0], max(high, whole[-1][1]))
        else:
            whole.append((low, high))
    cut = [(a, min(b, 0xD7FF)) for a, b in whole if a <= 0xD7FF]
    return tuple(cut + [(max(a, 0xE000), b) for a, b in whole if b >= 0xE000])


def _others(ranges: Ranges) -> Ranges:
    """All characters that are not in `ranges`."""
    edges = [-1, *(edge for pair in ranges for edge in pair), LAST + 1]
    gaps = [(a + 1, b - 1) for a, b in zip(edges[::2], edges[1::2], strict=True)]
    return normal([(a, b) for a, b in gaps if a <= b])


_BLANK = re.compile(r"(?:[ \t]|#[^\r\n]*)*")
_BLANK_LINES = re.compile(r"(?:[ \t\r\n]|#[^\r\n]*)*")
_NAME = re.compile(r"[A-Za-z0-9_-]+")
_BRACES = re.compile(r"\{\s*(\d{1,9})\s*(?:(,)\s*(\d{1,9})?\s*)?\}")
_ESCAPE = re.compile(
    r"\\(?:x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|([tnr\\\"\[\]]))"
)
_LETTERS = {"t": "\t", "n": "\n", "r": "\r"}
_REPEATS: dict[str, tuple[int, int | None]] = {
    "*": (0, None),
    "+": (1, None),
    "?": (0, 1),
}


class _Reader:
    """A recursive descent over the text."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._depth = 0

    def rules(self) -> dict[str, Node]:
        found: dict[str, Node] = {}
        self._skip(_BLANK_LINES)
        while self._at < len(self._text):
            name = self._name("the name of a rule")
            self._skip(_BLANK)
            if not self._take("::="):
                raise self._error("'::='")
            if name in found:
                raise ConfigError(
                    f"the grammar defines the rule {name!r} twice: remove one"
                )
            self._skip(_BLANK_LINES)
            found[name] = self._alternatives(nested=False)
            if self._here() not in ("", "\r", "\n"):
                raise self._error("the end of the rule")
            self._skip(_BLANK_LINES)
        return found

    def _alternatives(self, *, nested: bool) -> Node:
        parts = [self._sequence(nested)]
        while self._take("|"):
            self._skip(_BLANK_LINES)
            parts.append(self._sequence(nested))
        return parts[0] if len(parts) == 1 else Alt(tuple(parts))

    def _sequence(self, nested: bool) -> Node:
        blank = _BLANK_LINES if nested else _BLANK
        parts: list[Node] = []
        while (here := self._here()) and here not in "|)\r\n":
            parts.append(self._repeated(self._item(here)))
            self._skip(blank)
        return parts[0] if len(parts) == 1 else Seq(tuple(parts))

    def _item(self, here: str) -> Node:
        if here == '"':
            return self._literal()
        if here == "[":
            return self._class()
        if here == "(":
            return self._group()
        if self._take("."):
            return Chars(normal([(0, LAST)]))
        if here in "<!":
            raise ConfigError(
                f"the grammar names a token ({here!r} in line {self._line()}), which "
                "edgecs does not have: write its text as a string"
            )
        return Ref(self._name("a string, a class, a group or a rule"))

    def _group(self) -> Node:
        self._at += 1
        self._depth += 1
        if self._depth > MOST_NESTED:
            raise self._error(f"at most {MOST_NESTED} nested groups")
        self._skip(_BLANK_LINES)
        node = self._alternatives(nested=True)
        if not self._take(")"):
            raise self._error("')'")
        self._depth -= 1
        return node

    def _repeated(self, node: Node) -> Node:
        while True:
            self._skip(_BLANK)
            braces = _BRACES.match(self._text, self._at)
            if braces:
                self._at = braces.end()
                low, comma, high = braces.groups()
                bounds = int(low), int(high or low) if high or not comma else None
            elif self._here() in _REPEATS and self._here():
                bounds = _REPEATS[self._here()]
                self._at += 1
            else:
                return node
            least, most = bounds
            largest = least if most is None else most
            if least > largest or largest > MOST_REPEATS:
                raise self._error(f"ascending repeat counts up to {MOST_REPEATS}")
            node = Repeat(node, least, most)

    def _literal(self) -> Node:
        self._at += 1
        codes = []
        while not self._take('"'):
            codes.append(self._char("'\"' at the end of the string"))
        parts = [Chars(normal([(code, code)])) for code in codes]
        return parts[0] if len(parts) == 1 else Seq(tuple(parts))

    def _class(self) -> Node:
        self._at += 1
        negated = self._take("^")
        ranges = []
        while not self._take("]"):
            low = high = self._char("']' at the end of the class")
            if self._here() == "-" and self._text[self._at + 1 : self._at + 2] != "]":
                self._at += 1
                high = self._char("']' at the end of the class")
            if high < low:
                raise self._error("a range that ascends")
            ranges.append((low, high))
        chars = _others(normal(ranges)) if negated else normal(ranges)
        if not chars:
            raise self._error("a class of at least one character")
        return Chars(chars)

    def _char(self, expected: str) -> int:
        """A character of a string or a class, escaped or not."""
        escape = _ESCAPE.match(self._text, self._at)
        if escape:
            self._at = escape.end()
            *codes, letter = escape.groups()
            code = int(next(filter(None, codes)), 16) if not letter else None
            return ord(_LETTERS.get(letter, letter)) if code is None else self._ok(code)
        here = self._here()
        if not here:
            raise self._error(expected)
        if here == "\\":
            raise self._error(r"one of \t \n \r \\ \" \[ \] \x41 \u0041 \U00000041")
        self._at += 1
        return self._ok(ord(here))

    def _ok(self, code: int) -> int:
        if code > LAST or 0xD800 <= code <= 0xDFFF:
            raise self._error(f"a character of Unicode before it, not {code:#x}")
        return code

    def _name(self, expected: str) -> str:
        name = _NAME.match(self._text, self._at)
        if not name:
            raise self._error(expected)
        self._at = name.end()
        return name[0]

    def _here(self) -> str:
        return self._text[self._at : self._at + 1]

    def _take(self, token: str) -> bool:
        if self._text.startswith(token, self._at):
            self._at += len(token)
            return True
        return False

    def _skip(self, blank: re.Pattern[str]) -> None:
        found = blank.match(self._text, self._at)
        assert found
        self._at = found.end()

    def _line(self) -> int:
        return self._text.count("\n", 0, self._at) + 1

    def _error(self, expected: str) -> ConfigError:
        got = self._text[self._at : self._at + 20].split("\n")[0]
        return ConfigError(
            f"the grammar is not GBNF in line {self._line()}: {expected} was expected, "
            f"got {got or 'the end'!r}; correct it there"
        )
