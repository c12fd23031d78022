"""The user's store against a search through all texts."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecs.drafters.copies import LONGEST
from edgecs.errors import ConfigError
from edgecs.memory import index, segment, store
from edgecs.memory.lookup import COUNTED, LOOKED_AT, SHORTEST
from edgecs.memory.store import UserStore

ONE, OTHER = "ab" * 32, "cd" * 32  # identities of tokenizers
texts = st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=60), max_size=12)
ends = st.lists(st.integers(0, 4), max_size=40)


def opened(folder: Path, tokenizer: str = ONE, **more) -> UserStore:
    return UserStore(folder, tokenizer, 1000, **more)


def add(memory: UserStore, *documents) -> None:
    for n, ids in enumerate(documents):
        text = f"{n} {ids}"
        memory.add("answer", "model", text, np.array(ids, np.int32))


def occurrences(documents, end) -> tuple[int, list[list[int]]]:
    """Length of the longest match, and all that followed it."""
    for length in range(min(len(end), LONGEST), 0, -1):
        wanted = end[-length:]
        found = [
            ids[at + length :]
            for ids in documents
            for at in range(len(ids) - length)
            if ids[at : at + length] == wanted
        ]
        if found:
            return length, found
    return 0, []


@pytest.fixture(params=[1, index._IN_FILE], ids=["in files", "in RAM"])
def sizes(request, monkeypatch):
    """Whether segments are in files although they are small."""
    monkeypatch.setattr(index, "_IN_FILE", request.param)
    return request.param


@pytest.mark.parametrize("least", [1, index._IN_FILE], ids=["in files", "in RAM"])
@given(
    documents=texts,
    end=ends,
    k=st.integers(1, 20),
    again=st.booleans(),
    small=st.sampled_from([0, 6, 1 << 19]),
    spread=st.sampled_from([1, 249]),
)
def test_a_match_is_that_of_a_search_through_all_texts(
    least, documents, end, k, again, small, spread
):
    documents = [[spread * token for token in ids] for ids in documents]
    end = [spread * token for token in end]
    with TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(index, "_IN_FILE", least)
        patch.setattr(segment, "_SMALL", small)
        memory = opened(Path(name))
        add(memory, *documents)
        if again:
            memory.close()
            memory = opened(Path(name))
        with memory:
            match = memory.match(end, k)
        length, found = occurrences(documents, end)
        if length < SHORTEST:
            assert match is None
            return
        assert match is not None
        assert match.length == length
        assert match.times == min(len(found), COUNTED)
        ways = [text[: len(match.tokens)] for text in found]
        assert match.tokens in ways
        firsts = Counter(text[0] for text in found)
        if len(found) <= LOOKED_AT:
            assert firsts[match.tokens[0]] == match.agreeing == max(firsts.values())
            longer = [len(t) for t in found if t[: len(match.tokens)] == match.tokens]
            assert len(match.tokens) == min(k, max(longer))
        else:
            assert 1 <= match.agreeing <= firsts[match.tokens[0]]


def test_of_equally_frequent_continuations_the_newest_is_taken(tmp_path):
    with opened(tmp_path) as memory:
        add(memory, [1, 2, 3], [1, 2, 4], [1, 2, 5])
        assert memory.match([1, 2], 4) == (2, 3, 1, [5])


def test_the_majority_is_taken_token_by_token(tmp_path):
    with opened(tmp_path) as memory:
        add(memory, [1, 2, 3, 4, 5], [1, 2, 3, 4, 6, 7], [1, 2, 9, 9], [1, 2, 3, 8])
        assert memory.match([1, 2], 9) == (2, 4, 3, [3, 4, 6, 7])


def test_many_occurrences_are_counted_up_to_a_bound(tmp_path):
    with opened(tmp_path) as memory:
        add(memory, [7, 8] * 500)
        match = memory.match([7, 8], 2)
        assert (match.times, match.tokens) == (COUNTED, [7, 8])


def test_texts_do_not_continue_in_each_other(tmp_path):
    with opened(tmp_path) as memory:
        add(memory, [1, 2, 3], [4, 5, 6])
        assert memory.match([2, 3], 4) is None
        assert memory.match([1, 2], 4).tokens == [3]
        assert memory.match([3, 4, 5], 4).length == 2


def test_an_answer_that_is_there_is_not_added_again(tmp_path):
    with opened(tmp_path) as memory:
        add(memory, [1, 2, 3])
        add(memory, [1, 2, 3])
        assert memory.match([1, 2], 4).times == 1
        assert len(memory.documents.all()) == 1


def test_what_one_process_adds_another_finds_after_a_refresh(tmp_path, sizes):
    with opened(tmp_path) as one, opened(tmp_path) as two:
        add(one, [1, 2, 3])
        two.refresh()
        add(two, [9, 8, 7])
        one.refresh()
        assert one.match([9, 8], 1).tokens == two.match([9, 8], 1).tokens == [7]
        assert one.match([1, 2], 1).times == two.match([1, 2], 1).times == 1


def test_what_is_deleted_is_not_found_anywhere(tmp_path, sizes):
    with opened(tmp_path) as memory, opened(tmp_path) as other:
        add(memory, [1, 2, 3], [4, 5, 6])
        other.refresh()
        memory.documents.remove([1])
        other.refresh()
        assert other.match([1, 2], 1) is None
        assert other.match([4, 5], 1).tokens == [6]
    assert store.clear(tmp_path) == 1
    left = [path.name for path in tmp_path.rglob("*") if path.is_file()]
    assert not [name for name in left if name.endswith(".segment")]
    with opened(tmp_path) as memory:
        assert memory.match([4, 5], 1) is None


def test_a_deleted_text_is_gone_from_the_bytes_on_the_disk(tmp_path, sizes):
    words = np.frombuffer(b"SECRETSECRETSECRETSECRET", np.int32)
    words = words & 0xFFFFFF
    with opened(tmp_path) as memory:
        memory.add("file", "a", "the secret " * 2000, np.tile(words, 900))
    assert store.clear(tmp_path) == 1
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or b"the secret" not in path.read_bytes(), path
        assert path.is_dir() or b"SEC" not in path.read_bytes(), path


def test_what_was_of_no_use_for_longest_is_dropped_first(tmp_path):
    documents = [[n, *range(100 + 40 * n, 140 + 40 * n)] for n in range(10)]
    with opened(tmp_path) as memory:
        add(memory, *documents)
        total = memory.documents.size()
        with memory.documents._writing() as db:
            db.execute("UPDATE documents SET used = 1000 - id, added = 0")
        memory.match(documents[9][:20], 4)  # the one that was of use longest ago
    with opened(tmp_path, most_bytes=total) as memory:
        memory.match(documents[9][:20], 4)
        add(memory, [999] * 40)
        kept = {one.id for one in memory.documents.all()}
        assert 10 in kept
        assert 11 in kept
        assert 9 not in kept
        assert memory.documents.size() <= total
        assert memory.match(documents[8][:20], 4) is None
        assert memory.match(documents[9][:20], 4) is not None


def test_a_file_that_has_changed_replaces_its_old_text(tmp_path):
    with opened(tmp_path) as memory:
        memory.add("file", "/notes", "old", np.array([1, 2, 3], np.int32))
        memory.add("file", "/notes", "new", np.array([1, 2, 4], np.int32))
        assert [memory.documents.text(d.id) for d in memory.documents.all()] == ["new"]


def test_texts_without_tokens_are_read_by_the_tokenizer_of_each_model(tmp_path):
    def encode(text: str):
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32)

    with opened(tmp_path) as memory:
        for n in range(3):
            memory.documents.add("file", f"/{n}", f"file {n} " * 10)
        assert memory.match(list(b"file"), 3) is None
        assert memory.read(encode, most_bytes=100) == (1, 2)  # one is always read
        assert memory.match(list(b"file"), 3).tokens == list(b" 2 ")
        assert memory.read(encode) == (2, 0)
        assert memory.read(encode) == (0, 0)
    with opened(tmp_path, OTHER) as memory:
        assert memory.match(list(b"file"), 3) is None
        assert memory.read(lambda text: encode(text) + 100) == (3, 0)
        assert memory.match([b + 100 for b in b"file 1"], 1).tokens == [132]


def test_tokens_of_another_tokenizer_are_not_found(tmp_path, sizes):
    with opened(tmp_path) as memory:
        add(memory, [1, 2, 3])
    with opened(tmp_path, OTHER) as memory:
        assert memory.match([1, 2], 4) is None
    with opened(tmp_path) as memory:
        assert memory.match([1, 2], 4) is not None


def test_there_are_few_segments_however_much_is_added(tmp_path, sizes):
    random = np.random.default_rng(0)
    with opened(tmp_path) as memory:
        for n in range(120):
            ids = random.integers(0, 900, random.integers(1, 60)).astype(np.int32)
            memory.add("answer", "m", str(n), ids)
        segments = memory._index.segments
        assert len(segments) <= 4
        assert sum(len(one.ids) for one in segments) == 120
        on_disk = {*(tmp_path / "index").glob("*.segment")}
        assert on_disk == {one.path for one in segments if one.path}


def test_segments_have_a_largest_size(tmp_path, monkeypatch):
    monkeypatch.setattr(index, "_LARGEST", 100)
    with opened(tmp_path) as memory:
        add(memory, *([n] * 30 for n in range(20)), list(range(500, 700)))
        assert memory.match([500, 501], 1).tokens == [502]
    with opened(tmp_path) as memory:
        assert max(one.words for one in memory._index.segments) <= 100
        assert all(memory.match([n] * 4, 1).tokens == [n] for n in range(20))


def test_larger_ids_than_the_vocabulary_has_are_never_proposed(tmp_path):
    with opened(tmp_path) as memory:
        add(memory, [1, 2, 3, 1000, 4], [5, 6, 2000])
        assert memory.match([1, 2], 4).tokens == [3]
        assert memory.match([5, 6], 4) is None


def test_negative_ids_are_not_stored(tmp_path):
    with opened(tmp_path) as memory:
        assert not memory.add("answer", "m", "x", np.array([1, -1], np.int32))
        assert not memory.add("answer", "m", "x", np.array([], np.int32))


def test_a_store_in_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be used"):
        opened(tmp_path / "file")
