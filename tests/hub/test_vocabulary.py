"""Vocabulary identity: one tokenizer, however its model is padded, and nothing else."""

from __future__ import annotations

import ctypes
import hashlib
import os
from pathlib import Path

import llama_cpp as lib
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecs.errors import ModelError
from edgecs.hub import compatibility
from edgecs.hub.compatibility import (
    check_same,
    read_pieces,
    real_size,
    vocabulary_hash,
    write_pieces,
)
from edgecs.runtime.loader import Loaded

PIECES = [b"a", b"", b"\xff\x00", b"[PAD1]", "é".encode(), b"<|end|>"]
NAMES = {"target_name": "big.gguf", "drafter_name": "small"}
pieces = st.lists(st.binary(max_size=3), max_size=6)
padding = st.lists(
    st.one_of(st.just(b""), st.from_regex(rb"\[PAD[0-9]{1,6}\]", fullmatch=True))
)


def real(texts: list[bytes]) -> list[bytes]:
    return texts[: real_size(texts)]


def test_the_hash_is_what_it_says():
    data = b"\x01\0\0\0a" + b"\0\0\0\0" + b"\x02\0\0\0bc"
    assert vocabulary_hash([b"a", b"", b"bc"]) == hashlib.sha256(data).hexdigest()


@given(texts=pieces, tail=padding)
def test_a_padded_tail_is_not_part_of_the_identity(
    texts: list[bytes], tail: list[bytes]
):
    assert vocabulary_hash(texts + tail) == vocabulary_hash(texts)
    check_same(texts + tail, vocabulary_hash(texts), **NAMES)


@given(one=pieces, other=pieces)
def test_different_tokens_are_different_vocabularies(
    one: list[bytes], other: list[bytes]
):
    same = real(one) == real(other)
    assert (vocabulary_hash(one) == vocabulary_hash(other)) is same
    if not same:
        with pytest.raises(ModelError):
            check_same(one, vocabulary_hash(other), other, **NAMES)


def test_only_the_tail_is_padding_and_only_what_is_flagged():
    texts = [*PIECES, b"<unused0>", b"[PAD7]", b""]
    assert real_size(texts) == 7
    assert real_size(texts, [False] * 6 + [True] * 3) == 6
    assert real_size(texts, [True] * 9) == 0
    assert real_size([b"x", b"[PAD]"]) == 2  # a token that pads texts is a real one
    assert real_size([b"", b""]) == 0


def test_a_difference_is_named_with_both_texts():
    other = [*PIECES[:4], b"e\xff", b"<|end|>"]
    sentence = r"small cannot draft for big.gguf: token 4 is 'é' in the target and 'e\\"
    with pytest.raises(ModelError, match=sentence) as caught:
        check_same(PIECES, vocabulary_hash(other), other, **NAMES)
    assert "use a drafter made for this model" in str(caught.value)
    shorter = PIECES[:5]
    with pytest.raises(ModelError, match="target has 6 tokens and the drafter 5"):
        check_same(PIECES, vocabulary_hash(shorter), shorter, **NAMES)


def test_without_texts_the_message_says_so():
    with pytest.raises(ModelError, match="the drafter has no token texts"):
        check_same(PIECES, "0" * 64, **NAMES)


@given(texts=pieces)
def test_texts_read_back_as_they_were_written(
    texts: list[bytes], tmp_path_factory: pytest.TempPathFactory
):
    path = tmp_path_factory.mktemp("texts") / "vocabulary.json"
    write_pieces(path, texts)
    assert read_pieces(path, vocabulary_hash(texts)) == real(texts)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[", "cannot be read as a list of token texts"),
        ("7", "cannot be read as a list of token texts"),
        ("[7]", "cannot be read as a list of token texts"),
        ('["\u20ac"]', "cannot be read as a list of token texts"),
        ("[" * 50_000, "cannot be read as a list of token texts"),
        ("[1" + "0" * 5000 + "]", "cannot be read as a list of token texts"),
        ('["b"]', "has the vocabulary .* its manifest has"),
    ],
)
def test_a_damaged_list_is_refused(text: str, sentence: str, tmp_path: Path):
    path = tmp_path / "vocabulary.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ModelError, match=sentence):
        read_pieces(path, vocabulary_hash([b"a"]))
    with pytest.raises(ModelError, match="cannot be read"):
        read_pieces(tmp_path / "none", vocabulary_hash([b"a"]))


def test_a_list_is_a_regular_file_of_bounded_size(tmp_path: Path, monkeypatch):
    path = tmp_path / "vocabulary.json"
    write_pieces(path, PIECES)
    monkeypatch.setattr(compatibility, "_LARGEST", path.stat().st_size - 1)
    with pytest.raises(ModelError, match="it has more than [0-9]+ bytes"):
        read_pieces(path, vocabulary_hash(PIECES))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ModelError, match="it is a named pipe"):
        read_pieces(tmp_path / "pipe", vocabulary_hash(PIECES))


def test_the_texts_of_a_gguf_are_its_tokenizers(tiny: Loaded):
    vocab = lib.llama_model_get_vocab(tiny.model.handle)
    buffer = ctypes.create_string_buffer(64)
    texts = []
    for token in range(lib.llama_vocab_n_tokens(vocab)):
        n = lib.llama_token_to_piece(vocab, token, buffer, len(buffer), 0, True)
        texts.append(ctypes.string_at(buffer, n))
    assert real_size(texts) == 272
    assert texts[-4:] == [b"<|begin|>", b"<|end|>", b"<|user|>", b"<|assistant|>"]
    assert texts[:256] == [bytes([i]) for i in range(256)]
