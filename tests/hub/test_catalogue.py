"""The catalogue: what its manifests promise, and which names find them."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    HFValidationError,
    validate_repo_id,
)
from hypothesis import given
from hypothesis import strategies as st

from edgecs.errors import FetchError, ModelError
from edgecs.hub.catalogue import file_size, memory_needed, resolve, search, similar
from edgecs.hub.manifest import REPO, HubSource, Manifest, known_manifests
from edgecs.hub.quantisation import quant_of
from edgecs.hub.store import Store
from edgecs_cli.commands.search import Bytes
from tests.commands import Edgecs, one_line

KNOWN = known_manifests()
NAMES = [(alias, m) for m in KNOWN.values() if m.card for alias in m.card.aliases]


@pytest.mark.parametrize("manifest", KNOWN.values(), ids=lambda m: m.name)
def test_an_entry_is_complete_and_its_checksum_is_of_a_fixed_commit(manifest: Manifest):
    card = manifest.card
    assert card
    assert manifest.size or card.approximate_size
    assert not (manifest.size and card.approximate_size)
    assert quant_of(manifest.file)
    assert (quant_of(manifest.file) or "").upper() == card.quantization.upper()
    if isinstance(manifest.source, HubSource):
        assert manifest.source.file == manifest.file
        fixed = re.fullmatch("[0-9a-f]{40}", manifest.source.revision)
        assert bool(fixed) == bool(manifest.size)
        assert not (manifest.sha256 and not fixed)
    for sibling in card.siblings:
        assert (file_size(KNOWN[sibling]) or 0) < (file_size(manifest) or 0)


def test_the_catalogue_has_the_families_that_people_run():
    assert 30 <= len(KNOWN) <= 50
    families = {m.card.family for m in KNOWN.values() if m.card}
    assert families >= {"Qwen3", "Qwen3.5", "Gemma 4", "Llama 3.2", "gpt-oss", "LFM2.5"}


@pytest.mark.parametrize(("alias", "manifest"), NAMES, ids=[a for a, _ in NAMES])
def test_an_alias_means_one_model_in_every_case_and_quantization(alias, manifest):
    for typed in (alias, alias.upper(), f"{alias}:latest"):
        assert resolve(typed, KNOWN) == (manifest, None)
    own = manifest.card.quantization
    assert resolve(f"{alias}-{own.lower()}", KNOWN) == (manifest, None)
    assert resolve(f"{alias}-q5_k_m", KNOWN) == (manifest, "Q5_K_M")
    assert resolve(f"{manifest.name}:Q5_K_M", KNOWN) == (manifest, "Q5_K_M")


def test_no_alias_is_given_twice_or_hides_a_name():
    aliases = [alias for alias, _ in NAMES]
    assert len(set(aliases)) == len(aliases)
    assert not set(aliases) & set(KNOWN)


@given(st.text(max_size=30))
def test_any_text_is_a_name_or_is_none(text: str):
    found = resolve(text, KNOWN)
    assert found is None or found.manifest in KNOWN.values()
    assert all(name in KNOWN for name in similar(text, KNOWN))


@given(st.text(alphabet="ab-._/", max_size=12) | st.from_regex(r"a[\w.-]{0,99}/b"))
def test_the_rule_of_repositories_is_hugging_faces(text: str):
    try:
        validate_repo_id(text)
        allowed = "/" in text
    except HFValidationError:
        allowed = False
    assert (REPO.problem(text) is None) == (allowed and text.isascii())


def test_search_needs_every_word_and_sorts_by_size():
    found = list(search(KNOWN.values(), ["QWEN", "coder"], size_under=3 * 10**9))
    assert found
    assert all("coder" in m.name for m in found)
    sizes = [file_size(m) or 0 for m in found]
    assert sizes == sorted(sizes)
    assert max(sizes) < 3 * 10**9
    assert {m.license for m in search(KNOWN.values(), license="MIT")} == {"MIT"}
    assert len(list(search(KNOWN.values()))) == len(KNOWN)


@given(st.integers(1, 1 << 40), st.integers(1, 1 << 40))
def test_a_larger_file_needs_more_memory_than_its_size(a: int, b: int):
    assert memory_needed(a) > a
    assert (a <= b) == (memory_needed(a) <= memory_needed(b)) or abs(a - b) < 10


@pytest.mark.parametrize(
    ("text", "size"),
    [("4GB", 4 * 10**9), ("500 mb", 5 * 10**8), ("1.5GiB", 3 << 29), ("7", 7)],
)
def test_sizes_are_read(text: str, size: int):
    assert Bytes().convert(text, None, None) == size


def test_search_on_the_command_line(edgecs: Edgecs):
    table = edgecs("models", "search", "gemma3", "--size-under", "1GB")
    assert table.code == 0
    names = [line.split()[0] for line in table.out.splitlines()]
    assert names == ["name", "gemma3-270m", "gemma3-1b"]
    listed = json.loads(edgecs("models", "search", "--licence", "mit", "--json").out)
    assert {entry["license"] for entry in listed} == {"MIT"}
    assert all(isinstance(entry["fits"], bool) for entry in listed)
    nothing = edgecs("models", "search", "qwen3-4")
    assert "qwen3-4b" in nothing.out
    nothing = edgecs("models", "search", "qwem3-4b")
    assert (nothing.code, nothing.out) == (0, "")
    assert "did you mean qwen3-4b" in nothing.err
    wrong = edgecs("models", "search", "--size-under", "huge")
    one_line(wrong, 2, "must be a size such as 4GiB or 500MiB, got 'huge'")


def test_an_unknown_name_is_answered_with_near_ones(tmp_path: Path):
    with pytest.raises(ModelError, match="did you mean .*'qwen3-8b'"):
        Store(tmp_path).find("qwen3:7b")
    with pytest.raises(ModelError, match="smollm2-135m-instruct has no Q8_0"):
        Store(tmp_path).find("smollm2:135m-q8_0")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Files by "repo/file@revision" that the hub offers, into a cache of its layout."""
    files: dict[str, bytes] = {}

    def download(repo: str, file: str, *, revision: str) -> str:
        data = files[f"{repo}/{file}@{revision}"]
        folder = tmp_path / "hub" / repo.replace("/", "--")
        path = folder / revision / file
        path.parent.mkdir(parents=True, exist_ok=True)
        blob = folder / hashlib.sha256(data).hexdigest()
        if not blob.exists():
            blob.write_bytes(data)
        if not path.exists():
            path.symlink_to(blob)
        return str(path)

    def cached(repo: str, file: str, *, revision: str) -> str | None:
        path = tmp_path / "hub" / repo.replace("/", "--") / revision / file
        return str(path) if path.exists() else None

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", cached)
    return files


def test_a_pull_takes_the_file_and_the_commit_of_the_catalogue(tmp_path, hub):
    manifest = KNOWN["qwen3-0.6b"]
    source = manifest.source
    assert isinstance(source, HubSource)
    hub[f"{source.repo}/{source.file}@{source.revision}"] = b"GGUF of another size"
    with pytest.raises(FetchError, match=f"20 bytes instead of {manifest.size}"):
        Store(tmp_path / "models").pull("qwen3:0.6b")


def test_a_pull_compares_with_the_checksum_that_the_hub_states(tmp_path, hub):
    store = Store(tmp_path / "models")
    source = KNOWN["gemma3-4b"].source
    assert isinstance(source, HubSource)
    hub[f"{source.repo}/{source.file}@main"] = b"GGUF"
    path = store.pull("gemma3:4b")
    assert store.find("gemma3").path == path
    path.resolve().write_bytes(b"GGUV")
    with pytest.raises(FetchError, match="wrong checksum: remove it with"):
        store.pull("gemma3:4b")
