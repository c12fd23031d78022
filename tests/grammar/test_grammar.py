"""Grammars on fakes: what is allowed is what the grammar says, and answers parse."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgecs.errors import ConfigError
from edgecs.grammar import lark
from edgecs.grammar.draft_mask import DraftMask
from edgecs.grammar.gbnf import Alt, Chars, Node, Ref, Repeat, Seq, parse
from edgecs.grammar.mask import Grammar, GrammarMask
from edgecs.grammar.trie import TokenTrie
from edgecs.testing.fakes import ByteTokenizer, TableModel

SIZE = 320
END = SIZE - 1
TRIE = TokenTrie.of(ByteTokenizer(SIZE), SIZE)
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "kind": {"enum": ["cat", "dog"]},
        "age": {"type": "integer", "minimum": 0, "maximum": 30},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
    },
    "required": ["name", "kind", "age", "tags"],
    "additionalProperties": False,
}
SHOP = r"""
root   ::= "(" item ("," ws item)* ")" ws   # recursive: items hold lists
item   ::= number | string | root
string ::= "'" [a-c\x20]{0,3} "'"
number ::= "-"? [0-9]{1,2} ("." [0-9])?
ws     ::= | " "
"""
# llama.cpp's own example: what ends a number may also be the end of the line.
ARITHMETIC = r"""
root  ::= (expr "=" ws term "\n")+
expr  ::= term ([-+*/] term)*
term  ::= ident | num | "(" ws expr ")" ws
ident ::= [a-z] [a-z0-9_]* ws
num   ::= [0-9]+ ws
ws    ::= [ \t\n]*
"""


def tokens(text: str | bytes | Iterable[int]) -> np.ndarray:
    if isinstance(text, str):
        text = text.encode()
    return np.array(list(text), dtype=np.int32)


def over(text: str) -> GrammarMask:
    return Grammar.gbnf(text).over(TRIE)


def accepts(mask: GrammarMask, text: str) -> bool:
    """Whether the answer may end here."""
    try:
        return mask.allows(tokens(text), END)
    except ConfigError:
        return False


def answer(mask: GrammarMask | None, seed: int, most: int = 400) -> str | None:
    """A model's greedy answer under the mask, None if it does not end in time."""
    model, ids = TableModel(SIZE, seed), np.empty(0, dtype=np.int32)
    for _ in range(most):
        row = model.law(ids)
        token = int((mask.mask(row, ids) if mask else row).argmax())
        if token == END:
            return bytes(ids.tolist()).decode()
        if token > 255:
            return None
        ids = np.append(ids, np.int32(token))
    return None


def check_animal(text: str) -> None:
    animal = json.loads(text)
    assert list(animal) == ["name", "kind", "age", "tags"]
    assert isinstance(animal["name"], str)
    assert len(animal["name"]) <= 6
    assert animal["kind"] in ("cat", "dog")
    assert isinstance(animal["age"], int)
    assert 0 <= animal["age"] <= 30
    assert len(animal["tags"]) <= 3
    assert all(isinstance(tag, bool) for tag in animal["tags"])


def test_answers_under_a_schema_always_parse():
    mask = Grammar.json_schema(SCHEMA).over(TRIE)
    found = [answer(mask, seed) for seed in range(30)]
    ended = [text for text in found if text is not None]
    assert len(ended) == 30
    assert len(set(ended)) > 20
    for text in ended:
        check_animal(text)


def test_without_the_mask_no_answer_is_json():
    for seed in range(30):
        text = answer(None, seed)
        assert text is None or not text.startswith("{")


def test_answers_under_a_grammar_are_what_it_describes():
    mask = over(SHOP)
    ended = [text for seed in range(20) if (text := answer(mask, seed)) is not None]
    assert len(ended) >= 5
    for text in ended:
        python = text.replace("''", "'x'").replace(" )", ")")
        assert set(python) <= set("()',.-abcx0123456789 ")
        assert python.count("(") == python.count(")") >= 1


# The meaning of GBNF, spelt out: every end that a node may reach in a text.
def matches(rules: dict[str, Node], text: str) -> bool:
    table = {(name, i): set() for name in rules for i in range(len(text) + 1)}

    def ends(node: Node, i: int) -> set[int]:
        match node:
            case Chars(ranges):
                inside = i < len(text) and any(
                    a <= ord(text[i]) <= b for a, b in ranges
                )
                return {i + 1} if inside else set()
            case Ref(name):
                return table[name, i]
            case Alt(parts):
                return set().union(*(ends(part, i) for part in parts))
            case Seq(parts):
                here = {i}
                for part in parts:
                    here = set().union(*(ends(part, j) for j in here))
                return here
            case Repeat(part, least, most):
                here, found = {i}, {i} if not least else set()
                times = least + len(text) + 1 if most is None else most
                for count in range(1, times + 1):
                    here = set().union(*(ends(part, j) for j in here))
                    found |= here if count >= least else set()
                return found

    before = -1
    while (size := sum(map(len, table.values()))) != before:
        before = size
        for name, rule in rules.items():
            for i in range(len(text) + 1):
                table[name, i] |= ends(rule, i)
    return len(text) in table["root", 0]


ATOMS = ['"a"', '"b"', '"ab"', '"aab"', '""', "[ab]", "[^a]", "x", "y", "root"]
REPEATS = ["*", "+", "?", "{2}", "{1,2}", "{0,0}", "{2,}"]


def larger(inner):
    rows = st.lists(inner, min_size=1, max_size=3)
    return st.one_of(
        rows.map(lambda parts: f"({' '.join(parts)})"),
        rows.map(lambda parts: f"({' | '.join(parts)})"),
        st.tuples(inner, st.sampled_from(REPEATS)).map(lambda p: f"({p[0]}){p[1]}"),
    )


bodies = st.recursive(st.sampled_from(ATOMS), larger, max_leaves=6)


@given(bodies, bodies, bodies)
@settings(max_examples=60)
def test_a_grammar_means_what_its_characters_mean(root: str, x: str, y: str):
    text = f"root ::= {root}\nx ::= {x}\ny ::= {y}\n"
    try:
        rules = parse(text)
    except ConfigError:  # 'root' never ends
        return
    mask = over(text)
    for length in range(5):
        for letters in itertools.product("ab", repeat=length):
            word = "".join(letters)
            assert accepts(mask, word) == matches(rules, word), (text, word)


@pytest.mark.parametrize(
    ("grammar", "yes", "no"),
    [
        ('root ::= [a-z]* "ing"', ["ing", "going", "inging"], ["", "go", "goingx"]),
        (ARITHMETIC, ["1=1\n", "a+(b*2)=c\n\nd = 3 \n"], ["1=1", "=1\n", "1+=1\n"]),
        (SHOP, ["(1)", "(-12.5, 'a b',((3)))"], ["()", "(1", "('d')", "(1,  2)"]),
        ('root ::= root "a" | "b"', ["b", "baa"], ["a", "bb"]),
        ('root ::= "é" [^\\x00-\\x7F] .', ["éüx", "éé\n"], ["éxx", "é"]),
        ('root ::= "\\x41\\u00e9\\U0001F600\\"\\\\"', ['Aé😀"\\'], ["Aé😀"]),
        ("root ::= [-+] [a-]\n  # comment\n\nx ::= (\n y |\n )\ny ::= .", ["-a"], "a"),
        ('root ::= "a"{2} "b"{,2}'.replace("{,", "{0,"), ["aa", "aabb"], ["aabbb"]),
    ],
)
def test_gbnf(grammar: str, yes: list[str], no: list[str]):
    mask = over(grammar)
    assert [text for text in yes if not accepts(mask, text)] == []
    assert [text for text in no if accepts(mask, text)] == []


def test_lexemes_are_used_only_where_they_change_nothing():
    chars = lark.as_lark(parse(ARITHMETIC))
    assert not any(line.startswith("T") for line in chars.splitlines())
    lexemes = lark.as_lark(parse(SHOP))
    assert any(line.startswith("T") for line in lexemes.splitlines())


GRAMMARS = {
    "schema": Grammar.json_schema(SCHEMA),
    "free JSON": Grammar.json_schema({}),
    "lexemes": Grammar.gbnf(SHOP),
    "characters": Grammar.gbnf(ARITHMETIC),
    "regular": Grammar.gbnf('root ::= ("ab" | "abc")* "."?'),
}


@given(data=st.data(), kind=st.sampled_from(sorted(GRAMMARS)))
@settings(max_examples=50)
def test_the_mask_depends_on_the_answer_alone(data, kind: str):
    """Whatever was asked before, in whatever order: the mask of a fresh matcher."""
    used, paths = GRAMMARS[kind].over(TRIE), [np.empty(0, dtype=np.int32)]
    for _ in range(12):
        path = data.draw(st.sampled_from(paths))
        path = path[: data.draw(st.integers(0, path.size))]
        expected = GRAMMARS[kind].over(TRIE).allowed(path)
        asked = data.draw(st.sampled_from(["allowed", "allows", "refused"]))
        if asked == "refused":
            wrong = np.append(path, np.int32(np.flatnonzero(~expected)[0]))
            with pytest.raises(ConfigError):
                used.allowed(wrong)
        if asked == "allows":
            assert [used.allows(path, token) for token in range(SIZE)] == [*expected]
        else:
            assert np.array_equal(used.allowed(path), expected)
        longer = path
        for _ in range(data.draw(st.integers(0, 8))):
            choices = np.flatnonzero(GRAMMARS[kind].over(TRIE).allowed(longer)[:256])
            if not choices.size:
                break
            pick = data.draw(st.integers(0, choices.size - 1))
            longer = np.append(longer, np.int32(choices[pick]))
        paths.append(longer)


def test_the_end_is_allowed_when_the_grammar_is_complete():
    mask = over('root ::= "a" "b"?')
    assert np.flatnonzero(mask.allowed(tokens(""))).tolist() == [ord("a")]
    assert np.flatnonzero(mask.allowed(tokens("a"))).tolist() == [ord("b"), END]
    assert np.flatnonzero(mask.allowed(tokens("ab"))).tolist() == [END]
    assert np.flatnonzero(mask.allowed(tokens([97, END]))).tolist() == [END]
    assert not mask.allows(tokens(""), END)
    with pytest.raises(ConfigError, match=r"token 0 \(id 319\)"):
        mask.allowed(tokens([END]))
    with pytest.raises(ConfigError, match=r"token 2 \(id 98\)"):
        mask.allowed(tokens([97, END, 98]))


PIECES = [
    b"yes",
    b"y",
    b"es",
    b"yes",
    b"<end>",
    b"<|im_end|>",
    b"",
    b"\xff",
    b"x" * 999,
]


def test_every_end_and_every_spelling_is_allowed_but_nothing_without_text():
    trie = TokenTrie(PIECES, {4, 5})
    mask = Grammar.gbnf('root ::= "yes"').over(trie)
    assert np.flatnonzero(mask.allowed(tokens([]))).tolist() == [0, 1, 3]
    assert np.flatnonzero(mask.allowed(tokens([1]))).tolist() == [2]
    assert np.flatnonzero(mask.allowed(tokens([1, 2]))).tolist() == [4, 5]
    anything = Grammar.gbnf("root ::= .*").over(trie)
    assert np.flatnonzero(anything.allowed(tokens([0]))).tolist() == [0, 1, 2, 3, 4, 5]
    ends_as_text = Grammar.gbnf('root ::= "<end>yes" | "y"').over(trie)
    assert np.flatnonzero(ends_as_text.allowed(tokens([]))).tolist() == [1]
    with pytest.raises(ConfigError, match="token 0 .id 4."):
        ends_as_text.allowed(tokens([4]))
    for token in (-1, 6, 7, 8, 9, 1 << 40):
        assert not anything.allows(tokens([]), token)
    for token in (-1, 6, 99):
        with pytest.raises(ConfigError, match=f"token 1 .id {token}."):
            anything.allowed(tokens([0, token]))


def test_a_dead_end_is_an_error_there_and_nowhere_else():
    trie = TokenTrie([b"a", b"b", b""], {2})
    mask = Grammar.gbnf('root ::= "aX" | "b"').over(trie)
    for _ in range(2):
        with pytest.raises(ConfigError, match="after 1 tokens of the answer"):
            mask.allowed(tokens([0]))
        assert mask.allowed(tokens([1])).tolist() == [False, False, True]


def test_control_tokens_are_no_text_of_a_json_string():
    pieces = [bytes([byte]) for byte in range(256)] + [b"", b"<tag>", b""]
    mask = Grammar.json_schema({"type": "string"}).over(TokenTrie(pieces, {258}))
    inside = mask.allowed(tokens('"x'))
    assert inside[257]  # ordinary text, whatever it looks like
    assert not inside[256]
    assert not inside[258]


def test_padded_rows_are_masked_to_their_end():
    row = np.arange(SIZE + 64, dtype=np.float32)
    kept = row.copy()
    masked = over('root ::= "a" | "b"').mask(row, tokens(""))
    assert masked.dtype == np.float32
    assert np.flatnonzero(np.isfinite(masked)).tolist() == [ord("a"), ord("b")]
    assert masked[ord("b")] == row[ord("b")]
    assert np.array_equal(row, kept)


def test_characters_may_be_cut_anywhere():
    mask = over('root ::= "é" | "ê"')
    first, second = "é".encode()
    assert np.flatnonzero(mask.allowed(tokens(""))).tolist() == [first]
    ends = [second, "ê".encode()[1]]
    assert np.flatnonzero(mask.allowed(tokens([first]))).tolist() == ends


def test_blanks_between_the_parts_of_a_json_text_are_limited():
    mask = Grammar.json_schema({"type": "object"}).over(TRIE)
    assert mask.allows(tokens("{\n" + 19 * " "), ord(" "))
    assert not mask.allows(tokens("{\n" + 20 * " "), ord(" "))
    compact = {"type": "object", "x-guidance": {"whitespace_flexible": True}}
    own = {"type": "array", "x-guidance": {"whitespace_pattern": "[ ]{1,3}"}}
    assert Grammar.json_schema(compact).over(TRIE).allows(tokens("{"), ord(" "))
    assert Grammar.json_schema(own).over(TRIE).allows(tokens("[  "), ord(" "))
    assert not Grammar.json_schema(own).over(TRIE).allows(tokens("[   "), ord(" "))


def test_a_schema_is_the_same_as_text_bytes_or_object():
    text = json.dumps(SCHEMA)
    same = {Grammar.json_schema(each) for each in (text, text.encode(), SCHEMA)}
    assert len(same) == 1
    bom = b"\xef\xbb\xbf" + text.encode()
    assert Grammar.json_schema(bom) in same
    assert accepts(Grammar.json_schema(True).over(TRIE), "[1]")


def nested(levels: int, refs: int) -> dict[str, object]:
    inner: dict[str, object] = {}
    for _ in range(levels):
        inner = {"type": "array", "items": inner}
    names = {f"a{i}": {"$ref": f"#/$defs/a{i + 1}"} for i in range(refs)}
    return {"$defs": {**names, f"a{refs}": inner}, "$ref": "#/$defs/a0"}


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: Grammar.gbnf(""), "the grammar is empty"),
        (lambda: Grammar.gbnf(" \n# only a comment"), "no rule 'root'"),
        (lambda: Grammar.gbnf("a\0b"), "zero byte at 1"),
        (lambda: Grammar.gbnf(b"\x89PNG\r\n"), "not text in UTF-8 .byte 0."),
        (lambda: Grammar.gbnf("x" * (1 << 19)), "has 524288 characters"),
        (lambda: Grammar.gbnf('a ::= "b"'), "no rule 'root'.* only a"),
        (lambda: Grammar.gbnf("root ::= a"), "no rule 'a', which 'root' uses"),
        (lambda: Grammar.gbnf('root ::= "a"\nroot ::= "b"'), "'root' twice"),
        (lambda: Grammar.gbnf('root ::= "a\n'), "line 2.*end of the string"),
        (lambda: Grammar.gbnf("root ::= [a"), "end of the class"),
        (lambda: Grammar.gbnf("root ::= [z-a]"), "range that ascends"),
        (lambda: Grammar.gbnf("root ::= []"), "at least one character"),
        (lambda: Grammar.gbnf('root ::= ("a"'), r"'\)' was expected, got 'the end'"),
        (lambda: Grammar.gbnf('root ::= "a")'), "end of the rule"),
        (lambda: Grammar.gbnf('\n\nroot = "a"'), "line 3: '::=' was expected"),
        (lambda: Grammar.gbnf('root ::= "\\q"'), "one of"),
        (lambda: Grammar.gbnf('root ::= "\\ud800"'), "character of Unicode"),
        (lambda: Grammar.gbnf('root ::= "a"{2,1}'), "repeat counts"),
        (lambda: Grammar.gbnf('root ::= "a"{9999}'), "repeat counts up to 2000"),
        (lambda: Grammar.gbnf("root ::= *"), "a rule was expected"),
        (lambda: Grammar.gbnf("root ::= <think>"), "names a token"),
        (lambda: Grammar.gbnf('root ::= "a" root'), "never ends"),
        (lambda: Grammar.gbnf("root ::= " + "(" * 200), "nested groups"),
        (
            lambda: Grammar.gbnf(
                "root ::= a0\n" + "".join(f"a{i} ::= a{i + 1}\n" for i in range(9000))
            ),
            "9001 rules|no rule 'a9000'",
        ),
        (lambda: Grammar.json_schema(""), "the JSON schema is empty"),
        (lambda: Grammar.json_schema("{"), "not JSON: .*line 1"),
        (lambda: Grammar.json_schema("[" * 99_999), "not JSON: maximum recursion"),
        (lambda: Grammar.json_schema("[1]"), r"is an object, got '\[1\]'"),
        (lambda: Grammar.json_schema({"a": {1}}), "not JSON: .*set"),
        (lambda: Grammar.json_schema({"const": float("nan")}), "not JSON"),
        (lambda: Grammar.json_schema({"type": "text"}), "Invalid type: text"),
        (lambda: Grammar.json_schema({"not": {}}), r'Unimplemented keys: \["not"\]'),
        (lambda: Grammar.json_schema({"uniqueItems": True}), "uniqueItems"),
        (lambda: Grammar.json_schema({"pattern": "(?=a)"}), "look-ahead"),
        (lambda: Grammar.json_schema({"format": "colour"}), "Unknown format: colour"),
        (lambda: Grammar.json_schema({"$ref": "#/x"}), "'/x' does not exist"),
        (lambda: Grammar.json_schema({"$ref": "http://a/b"}), "http://a/b"),
        (lambda: Grammar.json_schema(False), "Unsatisfiable schema"),
        (lambda: Grammar.json_schema({"enum": []}), "Unsatisfiable schema"),
        (lambda: Grammar.json_schema(nested(60, 60)), "61 different .ref"),
        (lambda: Grammar.json_schema(nested(140, 0)), "recursion limit"),
        (lambda: Grammar.json_schema({"$ref": "#"}).over(TRIE), "no token of this"),
        (
            lambda: Grammar.gbnf('root ::= "é"').over(TokenTrie([b"e", b""], {1})),
            "no token of this model matches the grammar",
        ),
        (lambda: TokenTrie([b"a"], ()), "no token that ends an answer"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_sentence(
    make: Callable[[], object], problem: str, capfd: pytest.CaptureFixture[str]
):
    with pytest.raises(ConfigError, match=problem) as refused:
        make()
    said = str(refused.value)
    assert "\n" not in said
    assert len(said) < 500
    assert "llguidance" not in said
    assert capfd.readouterr() == ("", "")


def test_nothing_is_printed_while_an_answer_is_written(
    capfd: pytest.CaptureFixture[str],
):
    mask = Grammar.json_schema(SCHEMA).over(TRIE)
    assert answer(mask, 1)
    with pytest.raises(ConfigError):
        mask.allowed(tokens("x"))
    assert capfd.readouterr() == ("", "")


def test_the_vocabulary_of_a_gguf_spells_what_it_prints(tiny_gguf):
    from edgecs.engines.llama.token_bytes import token_trie
    from edgecs.engines.load_options import LoadOptions
    from edgecs.runtime.loader import load

    with load(tiny_gguf, LoadOptions(n_ctx=256)) as loaded:
        vocabulary = loaded.model.vocabulary
        trie = token_trie(vocabulary._vocab)
        same = TokenTrie.of(vocabulary, vocabulary.size)
        assert trie.size == vocabulary.size
        assert trie.ends == vocabulary.ends
        ids = vocabulary.encode('{"a": 1}', document=False)
    fillers = [i for i in range(trie.size) if trie.texts[i] != same.texts[i]]
    assert fillers == []
    mask = Grammar.json_schema({"type": "object"}).over(trie)
    assert all(mask.allows(ids[:i], int(ids[i])) for i in range(ids.size))
    assert np.flatnonzero(mask.allowed(ids)).tolist() == sorted(trie.ends)


def test_a_drafter_that_cannot_keep_to_a_grammar_is_free():
    mask = DraftMask(over('root ::= "ab"'))
    row = np.arange(TRIE.size, dtype=np.float32)
    start, wrong = np.empty(0, np.int32), np.array([ord("x")], np.int32)
    assert np.flatnonzero(mask.mask(row, start) > -np.inf).tolist() == [ord("a")]
    assert mask.allows(start, ord("a"))
    assert not mask.allows(start, ord("b"))
    assert mask.mask(row, wrong) is row
    assert mask.allows(wrong, ord("q"))
    assert mask.mask(row, start).argmax() == ord("a")  # and it finds its way back
    trimmed = row.copy()
    trimmed[ord("a")] = -np.inf
    assert mask.mask(trimmed, start) is trimmed
