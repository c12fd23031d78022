"""The file of Token Recycling: what it keeps, and what files it does not believe."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from random import Random

import pytest
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st

from edgecs.drafters import recycling_table
from edgecs.drafters.recycling import Recycling
from edgecs.drafters.recycling_table import LONGEST_RUN, RANKS, Best, BestRows
from edgecs.memory import model_files, recycled
from edgecs.memory.model_files import Identity, remove_files
from edgecs.memory.recycled import (
    KeptTable,
    NotRows,
    decoded_rows,
    encoded_rows,
    exported,
    merged,
)

VOCABULARY = 50
MODEL = Identity("m", "ab" * 16, "cd" * 32, VOCABULARY)
OWNER = MODEL.tokenizer, VOCABULARY
posix = pytest.mark.skipif(os.name != "posix", reason="it needs Unix")

ids = st.integers(0, VOCABULARY - 1)
bests = st.builds(
    Best,
    st.lists(ids, min_size=1, max_size=RANKS, unique=True),
    st.integers(1, LONGEST_RUN),
)
tables = st.builds(
    BestRows,
    st.dictionaries(ids, bests, max_size=6),
    st.dictionaries(st.tuples(ids, ids), bests, max_size=6),
)


def in_order(rows: BestRows) -> tuple[list[object], list[object]]:
    return [*rows.after_one.items()], [*rows.after_two.items()]


def kept(folder: Path, model: Identity = MODEL, **options: object) -> KeptTable:
    return KeptTable(folder, model, writes=True, **options)  # type: ignore[arg-type]


@given(tables)
def test_a_file_has_every_row_in_its_order(rows: BestRows):
    assert in_order(decoded_rows(encoded_rows(rows, *OWNER), *OWNER)) == in_order(rows)


@given(tables, tables)
def test_of_two_tables_the_newer_rows_win_and_come_last(older, newer):
    both = merged(older, newer)
    assert both.after_one == {**older.after_one, **newer.after_one}
    size = len(newer.after_one)
    assert [*both.after_one][len(both.after_one) - size :] == [*newer.after_one]


@given(tables, st.data())
def test_a_file_that_was_changed_is_refused_or_has_tokens_only(rows, data):
    whole = bytearray(encoded_rows(rows, *OWNER))
    at = data.draw(st.integers(0, len(whole) - 1))
    end = data.draw(st.sampled_from([at, at + 1, at + 4, len(whole)]))
    whole[at:end] = data.draw(st.binary(max_size=8))
    body = bytes(whole)
    if data.draw(st.booleans()):  # whoever writes hostile files can compute checksums
        body = body[:-32] + hashlib.sha256(body[:-32]).digest()
    try:
        found = decoded_rows(body, *OWNER)
    except NotRows:
        return
    for key, best in found.after_one.items():
        assert all(0 <= i < VOCABULARY for i in (key, *best.ids))
        assert 1 <= len(best.ids) <= RANKS
        assert 1 <= best.run <= LONGEST_RUN
    for pair, best in found.after_two.items():
        assert all(0 <= i < VOCABULARY for i in (*pair, *best.ids))


def test_what_a_session_learns_is_known_to_the_next(tmp_path: Path):
    first = kept(tmp_path)
    source = Recycling(first.table)
    source.learn([1, 2], [3, 4])
    assert first.save()
    assert not first.save()  # nothing new
    second = kept(tmp_path)
    assert second.table.after_one == {2: Best([3, 4], 1)}
    assert second.table.after_two == {(1, 2): Best([3, 4], 1)}


def test_nothing_is_read_or_made_before_a_table_is_used(tmp_path: Path):
    folder = tmp_path / "memory"
    table = kept(folder)
    assert not table.save()
    assert not folder.exists()
    assert table.table.after_one == {}
    assert table.path.exists()


@pytest.mark.parametrize(
    "other",
    [
        MODEL._replace(tokenizer="ee" * 32),
        MODEL._replace(vocab_size=VOCABULARY + 1),
    ],
)
def test_a_table_of_another_tokenizer_counts_as_empty(tmp_path: Path, other: Identity):
    first = kept(tmp_path)
    first.table.learn([1], [2])
    first.save()
    second = kept(tmp_path, other)
    assert second.table.after_one == {}
    second.table.learn([4], [5])
    assert second.save()
    assert [*kept(tmp_path, other).table.after_one] == [4]


def test_files_of_two_models_are_apart(tmp_path: Path):
    other = MODEL._replace(fingerprint="12" * 16)
    for model, token in ((MODEL, 1), (other, 2)):
        table = kept(tmp_path, model)
        table.table.learn([token], [3])
        table.save()
    assert [*kept(tmp_path).table.after_one] == [1]
    assert [*kept(tmp_path, other).table.after_one] == [2]


@pytest.mark.parametrize("case", range(20))
def test_a_damaged_file_counts_as_empty_and_is_replaced(tmp_path: Path, case: int):
    table = kept(tmp_path)
    for token in range(9):
        table.table.learn([token, token + 1], [3, 4, 5])
    table.save()
    random, data = Random(case), bytearray(table.path.read_bytes())
    if case % 2:
        del data[random.randrange(len(data)) :]
    else:
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    table.path.write_bytes(data)
    again = kept(tmp_path)
    assert again.table.after_one == {}
    again.table.learn([7], [8])
    assert again.save()
    assert [*kept(tmp_path).table.after_one] == [7]


@posix
def test_a_pipe_or_a_folder_in_its_place_does_not_block(tmp_path: Path):
    for make in (os.mkfifo, os.mkdir):
        table = kept(tmp_path / make.__name__)
        table.path.parent.mkdir(parents=True)
        make(table.path)
        assert table.table.after_one == {}
        table.table.learn([1], [2])
        table.save()
        assert exported(table.path) is None or make is os.mkfifo


def test_two_processes_keep_the_rows_of_both(tmp_path: Path):
    one, two = kept(tmp_path), kept(tmp_path)
    one.table.learn([1], [2])
    two.table.learn([3], [4])
    assert one.save()
    assert two.save()
    assert {*kept(tmp_path).table.after_one} == {1, 3}


@pytest.mark.parametrize("before", [True, False])
def test_what_was_cleared_meanwhile_is_not_written_again(tmp_path: Path, before: bool):
    if before:
        first = kept(tmp_path)
        first.table.learn([1], [2])
        first.save()
    table = kept(tmp_path)
    table.table.learn([3], [4])
    assert remove_files(tmp_path, "recycling") == 1
    assert not table.save()
    assert not table.path.exists()


def test_a_change_of_mind_counts_at_once(tmp_path: Path):
    mind = [True]
    table = kept(tmp_path, allowed=lambda: mind[0])
    table.table.learn([1], [2])
    mind[0] = False
    assert not table.save()
    assert kept(tmp_path).table.after_one == {}


def test_without_writing_no_file_is_made(tmp_path: Path):
    table = KeptTable(tmp_path / "memory", MODEL, writes=False)
    table.table.learn([1], [2])
    assert not table.save()
    assert not (tmp_path / "memory").exists()


@posix
def test_others_cannot_read_it(tmp_path: Path):
    before = os.umask(0)
    try:
        table = kept(tmp_path / "a" / "memory")
        table.table.learn([1], [2])
        table.save()
        for path in (tmp_path / "a" / "memory").rglob("*"):
            mode = stat.S_IMODE(path.stat().st_mode)
            assert mode == (0o700 if path.is_dir() else 0o600), path
    finally:
        os.umask(before)


def test_a_full_disk_or_a_held_lock_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    table = kept(tmp_path)
    table.table.learn([1], [2])
    with monkeypatch.context() as full:

        def refuse(*_: object, **__: object) -> None:
            raise OSError(28, "No space left on device")

        full.setattr(recycled, "write_whole", refuse)
        assert not table.save()
    table._lock.timeout = 0
    with FileLock(tmp_path / model_files._LOCK):
        assert not table.save()
    assert table.save()
    assert [*kept(tmp_path).table.after_one] == [1]


def test_writes_are_rare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    now = [100.0]
    monkeypatch.setattr(recycled.time, "monotonic", lambda: now[0])
    table = kept(tmp_path)
    for token, seconds, there in ((1, 0.0, [1]), (2, 1.0, [1]), (3, 1.5, [1, 2, 3])):
        now[0] += seconds
        table.table.learn([token], [9])
        table.save_soon()
        assert [*kept(tmp_path).table.after_one] == there


def test_a_file_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for module in (recycling_table, recycled):
        monkeypatch.setattr(module, "MOST", 3)
    table = kept(tmp_path)
    for token in range(9):
        table.table.learn([token], [9])
    table.save()
    other = kept(tmp_path)
    assert [*other.table.after_one] == [6, 7, 8]
    both = merged(BestRows({1: Best([1], 1)}, {}), other.table.copy())
    assert [*both.after_one] == [6, 7, 8]
    largest = BestRows(
        {n: Best([*range(RANKS)], 1) for n in range(3)},
        {(n, n): Best([*range(RANKS)], 1) for n in range(3)},
    )
    monkeypatch.undo()
    rest = recycled._FIXED.size + 32
    most = (len(encoded_rows(largest, *OWNER)) - rest) // 3 * recycling_table.MOST
    assert most + rest == recycled.LARGEST


@pytest.mark.parametrize("how", ["opened", "cleared"])
def test_what_a_killed_process_did_not_finish_is_deleted(tmp_path: Path, how: str):
    table = kept(tmp_path)
    table.table.learn([1], [2])
    table.save()
    left = table.path.with_name(f".{table.path.name}.999999999-0123abcd.part")
    left.write_bytes(b"some rows")
    if how == "opened":
        kept(tmp_path)
    else:
        remove_files(tmp_path)
    assert not left.exists()


def test_an_export_has_every_row(tmp_path: Path):
    table = kept(tmp_path)
    table.table.learn([1, 2], [3, 4])
    table.save()
    rows = exported(table.path)
    assert rows == {"after_one": [[2, [3, 4]]], "after_two": [[1, 2, [3, 4]]]}
    table.path.write_bytes(b"x")
    assert exported(table.path) is None
    assert exported(tmp_path / "none") is None
