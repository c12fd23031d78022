"""Converts the rules of a grammar to llguidance's dialect of Lark.

llguidance first splits a text into lexemes, each as long as possible, then parses them;
GBNF has only characters. So rules become lexemes where this keeps the grammar the same:

- a grammar without recursion is one regular expression;
- else its regular parts are lexemes, if no lexeme can extend into what may follow it
  (`_overrun`), so that the longest split is the only one;
- else every character is a lexeme. That is exact too, but masks take milliseconds
  instead of microseconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import groupby

from edgecs.grammar.gbnf import Alt, Chars, Node, Ranges, Ref, Repeat, Seq, references

Rules = dict[str, Node]

MOST_POSITIONS = 3_000
MOST_PAIRS = 100_000


def as_lark(rules: Rules) -> str:
    """The grammar in llguidance's format, starting at `root`."""
    rules = {name: rules[name] for name in _reachable(rules, "root")}
    regular = _regular(rules)
    if "root" in regular:
        return _Writer(rules, regular).text()
    lexemes: dict[Node, str] = {}
    cut = {
        name: rule if name in regular else _with_lexemes(rule, regular, lexemes)
        for name, rule in rules.items()
    }
    try:
        overrun = _overrun(cut, regular, lexemes)
    except (_TooLarge, RecursionError):
        overrun = True
    if overrun:
        return _Writer(rules, set()).text()
    names = {name: node for node, name in lexemes.items()}
    return _Writer(cut | names, regular | names.keys()).text()


def _reachable(rules: Rules, start: str) -> list[str]:
    found, waiting = {start: None}, [start]
    while waiting:
        new = references(rules[waiting.pop()]) - found.keys()
        found |= dict.fromkeys(sorted(new))
        waiting += new
    return list(found)


def _regular(rules: Rules) -> set[str]:
    """The rules that do not reach a recursive rule."""
    regular: set[str] = set()
    uses = {name: references(rule) for name, rule in rules.items()}
    users: dict[str, list[str]] = {name: [] for name in rules}
    for name, used in uses.items():
        for other in used:
            users[other].append(name)
    waiting = [name for name, used in uses.items() if not used]
    while waiting:
        name = waiting.pop()
        regular.add(name)
        for user in users[name]:
            uses[user].discard(name)
            if not uses[user]:
                waiting.append(user)
    return regular


def _with_lexemes(node: Node, regular: set[str], lexemes: dict[Node, str]) -> Node:
    """The node with its largest regular parts replaced by references to lexemes."""

    def visit(node: Node) -> Node:
        if node == Seq(()):
            return node
        if references(node) <= regular:
            return Ref(lexemes.setdefault(node, f"\0{len(lexemes)}"))
        match node:
            # Neighbours stay apart: "{" ws and "{" ws "}" would overrun each other.
            case Seq(parts):
                return Seq(tuple(map(visit, parts)))
            case Alt(parts):
                return Alt(tuple(map(visit, parts)))
            case Repeat(part, least, most):
                return Repeat(visit(part), least, most)
        return node

    return visit(node)


class _Writer:
    """Writes rules; those in `terminals` as regular expressions over characters.

    llguidance limits nested parentheses, so none are written: each group has a rule of
    its own.
    """

    def __init__(self, rules: Rules, terminals: set[str]) -> None:
        self._rules = rules
        self._terminals = terminals
        # Names are generated: in Lark case matters, and there are keywords.
        self._names = {
            name: f"T{i}" if name in terminals else f"r{i}"
            for i, name in enumerate(rules)
        }
        self._groups: dict[tuple[Node, bool], str] = {}
        self._lines: list[str] = []

    def text(self) -> str:
        """The whole grammar. no_forcing: only the model decides the tokenisation."""
        for name, rule in self._rules.items():
            self._write(self._names[name], rule, name in self._terminals)
        head = ['%llguidance {"no_forcing": true}', f"start: {self._names['root']}"]
        return "\n".join(head + self._lines) + "\n"

    def _write(self, name: str, rule: Node, flat: bool) -> None:
        parts = rule.parts if isinstance(rule, Alt) else (rule,)
        rows = " | ".join(self._row(part, flat) for part in parts)
        self._lines.append(f"{name}: {rows}")

    def _row(self, node: Node, flat: bool) -> str:
        parts = node.parts if isinstance(node, Seq) else (node,)
        texts: list[str] = []
        for chars, run in groupby(parts, lambda part: flat and isinstance(part, Chars)):
            spelt = [self._atom(part, flat) for part in run]
            texts += [f"/{''.join(each[1:-1] for each in spelt)}/"] if chars else spelt
        return " ".join(texts) or '""'

    def _atom(self, node: Node, flat: bool) -> str:
        match node:
            case Chars(ranges):
                return f"/{_regex(ranges)}/"
            case Ref(name):
                return self._names[name]
            case Repeat(_, _, 0):
                return '""'
            case Repeat(part, least, most):
                single = isinstance(part, Chars | Ref)
                inner = self._atom(part, flat) if single else self._group(part, flat)
                return f"{inner}{{{least},{'' if most is None else most}}}"
        return self._group(node, flat)

    def _group(self, node: Node, flat: bool) -> str:
        """The name of a rule for a group."""
        key = node, flat
        if key not in self._groups:
            self._groups[key] = f"{'G' if flat else 'g'}{len(self._groups)}"
            self._write(self._groups[key], node, flat)
        return self._groups[key]


def _regex(ranges: Ranges) -> str:
    low, high = ranges[0]
    if len(ranges) == 1 and low == high:
        return f"\\x{{{low:X}}}"
    spans = (f"\\x{{{low:X}}}-\\x{{{high:X}}}" for low, high in ranges)
    return f"[{''.join(spans)}]"


class _TooLarge(Exception):
    """The lexemes have too many positions to compare."""


class _Positions:
    """Lexemes as automata: a position is one place where a character is read."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self.chars: list[Ranges] = []
        self.after: list[set[int]] = []  # positions that may come next

    def build(self, node: Node) -> tuple[bool, set[int], set[int]]:
        """(matches the empty text, positions it begins with, positions it ends with)"""
        match node:
            case Chars(ranges):
                if len(self.chars) == MOST_POSITIONS:
                    raise _TooLarge
                self.chars.append(ranges)
                self.after.append(set())
                return False, {len(self.chars) - 1}, {len(self.chars) - 1}
            case Ref(name):
                return self.build(self._rules[name])
            case Alt(parts):
                built = [self.build(part) for part in parts]
                empty = any(may_be_empty for may_be_empty, _, _ in built)
                first = set[int]().union(*(begins for _, begins, _ in built))
                last = set[int]().union(*(ends for _, _, ends in built))
                return empty, first, last
            case Seq(parts):
                return self._row(self.build(part) for part in parts)
            case Repeat(part, least, most):
                return self._row(self._copies(part, least, most))
        raise AssertionError(node)

    def _row(
        self, parts: Iterator[tuple[bool, set[int], set[int]]]
    ) -> tuple[bool, set[int], set[int]]:
        empty, first, last = True, set[int](), set[int]()
        for may_be_empty, begins, ends in parts:
            for position in last:
                self.after[position] |= begins
            first = first | begins if empty else first
            last = last | ends if may_be_empty else ends
            empty = empty and may_be_empty
        return empty, first, last

    def _copies(
        self, part: Node, least: int, most: int | None
    ) -> Iterator[tuple[bool, set[int], set[int]]]:
        for i in range(least if most is None else most):
            empty, first, last = self.build(part)
            yield empty or i >= least, first, last
        if most is None:
            _, first, last = self.build(part)
            for position in last:
                self.after[position] |= first
            yield True, first, last


def _overrun(rules: Rules, regular: set[str], lexemes: dict[Node, str]) -> bool:
    """Whether a lexeme may extend into what follows another one, conservatively
    assuming that all lexemes could begin anywhere.

    That is: a text is a lexeme T, with one more character it may still become a lexeme,
    and this character may also follow T.
    """
    positions = _Positions(rules)
    starts: dict[str, set[int]] = {}
    empty: dict[str, bool] = {}
    end_of: dict[int, str] = {}  # the lexeme that may end here
    for node, name in lexemes.items():
        empty[name], starts[name], last = positions.build(node)
        end_of |= dict.fromkeys(last, name)
    grammar = {name: rule for name, rule in rules.items() if name not in regular}
    follow = _followers(grammar, empty)
    chars, after = positions.chars, positions.after
    next_chars = {
        name: {chars[p] for other in follow[name] for p in starts[other]}
        for name in starts
    }
    begin = sorted(set[int]().union(*starts.values()))
    seen = {(p, q) for p in begin for q in begin if _meet(chars[p], chars[q])}
    waiting = list(seen)
    while waiting:
        p, q = waiting.pop()  # both are reached by the same text
        for more in after[q]:
            if p in end_of and any(
                _meet(chars[more], other) for other in next_chars[end_of[p]]
            ):
                return True
            for other in after[p]:
                pair = (other, more)
                if pair not in seen and _meet(chars[other], chars[more]):
                    seen.add(pair)
                    waiting.append(pair)
        if len(seen) > MOST_PAIRS:
            raise _TooLarge
    return False


@lru_cache(maxsize=100_000)
def _meet(a: Ranges, b: Ranges) -> bool:
    """Whether two sets share a character."""
    return any(low <= end and start <= high for low, high in a for start, end in b)


def _followers(grammar: Rules, empty: dict[str, bool]) -> dict[str, set[str]]:
    """The lexemes that may follow each lexeme."""
    optional = {name for name, is_empty in empty.items() if is_empty}
    first: dict[str, set[str]] = {name: {name} for name in empty}
    first |= {name: set() for name in grammar}
    follow: dict[str, set[str]] = {name: set() for name in first}

    def is_optional(node: Node) -> bool:
        match node:
            case Ref(name):
                return name in optional
            case Seq(parts):
                return all(map(is_optional, parts))
            case Alt(parts):
                return any(map(is_optional, parts))
            case Repeat(part, least):
                return not least or is_optional(part)
        return False

    def visit(node: Node, after: set[str]) -> set[str]:
        """The lexemes that a node begins with; updates `follow` of its parts."""
        match node:
            case Ref(name):
                follow[name] |= after
                return first[name]
            case Seq(parts):
                begins: set[str] = set()
                for part in reversed(parts):
                    own = visit(part, after)
                    after = after | own if is_optional(part) else own
                    begins = begins | own if is_optional(part) else own
                return begins
            case Alt(parts):
                return set[str]().union(*(visit(part, after) for part in parts))
            case Repeat(part, _, most):
                own = visit(part, after)
                return own if most in (0, 1) else visit(part, after | own)
        return set()

    def size() -> int:
        sets = [*first.values(), *follow.values()]
        return len(optional) + sum(map(len, sets))

    before = -1
    while size() != before:
        before = size()
        for name, rule in grammar.items():
            first[name] |= visit(rule, follow[name])
            if is_optional(rule):
                optional.add(name)
    return follow
