"""References to models: what they mean, without any network."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from edgecs.errors import ModelError
from edgecs.hub.manifest import HubSource
from edgecs.hub.quantisation import choose_file
from edgecs.hub.store import Store

FILES = [
    "README.md",
    "mmproj-model-f16.gguf",
    "model-IQ4_XS.gguf",
    "model-Q4_K_M.gguf",
    "model-Q4_K_S.gguf",
    "model-Q8_0-00001-of-00002.gguf",
    "model-Q8_0-00002-of-00002.gguf",
    "model-f16.gguf",
]

pytestmark = pytest.mark.usefixtures("no_sockets")


@pytest.mark.parametrize(
    ("quant", "file"),
    [
        (None, "model-Q4_K_M.gguf"),
        ("q4_k_m", "model-Q4_K_M.gguf"),
        ("Q4_K_S", "model-Q4_K_S.gguf"),
        ("F16", "model-f16.gguf"),
        ("q8_0", "model-Q8_0-00001-of-00002.gguf"),
        ("Q4_K", None),
        ("Q2_K", None),
    ],
)
def test_a_quantisation_names_one_file(quant, file):
    assert choose_file(FILES, quant) == file


def test_without_the_default_quantisation_the_first_file_is_meant():
    assert choose_file(["b.gguf", "a.gguf"], None) == "a.gguf"
    assert choose_file(["README.md"], None) is None


@pytest.mark.parametrize(
    "reference",
    [
        "user/repo",
        "hf:user/repo",
        "hf.co/user/repo",
        "https://huggingface.co/user/repo",
    ],
)
def test_hub_references_need_no_network_to_be_understood(tmp_path, reference):
    model = Store(tmp_path).find(f"{reference}:Q8_0")
    assert isinstance(model.manifest.source, HubSource)
    assert model.manifest.source.repo == "user/repo"
    assert model.path is None


def test_offline_says_what_to_run(tmp_path: Path):
    store = Store(tmp_path, offline=True)
    for name in ("smollm2-135m-instruct", "user/repo:Q8_0"):
        with pytest.raises(ModelError, match=f"run `edgecs models pull {name}`"):
            store.path(name)


def test_paths_and_manifests_of_ones_own(tmp_path: Path):
    gguf = tmp_path / "some.gguf"
    gguf.write_bytes(b"GGUF")
    manifest = tmp_path / "mine.toml"
    manifest.write_text(
        'name = "mine"\ndescription = "d"\nlicense = "MIT"\nfile = "some.gguf"\n'
        f'[source.path]\npath = "{gguf}"\n'
    )
    store = Store(tmp_path)
    assert store.path(str(gguf)) == store.path(str(manifest)) == gguf
    with pytest.raises(ModelError, match="your own file"):
        store.remove(str(gguf))
    gguf.unlink()
    for reference in (gguf, manifest):
        assert store.find(str(reference)).path is None
        with pytest.raises(ModelError, match=r"some\.gguf does not exist"):
            store.pull(str(reference))


def test_a_typo_is_met_with_the_nearest_name(tmp_path: Path):
    with pytest.raises(ModelError, match="did you mean 'smollm2-135m-instruct'"):
        Store(tmp_path).find("smollm-135m")
    with pytest.raises(ModelError, match="models search"):
        Store(tmp_path).find("!!")


@pytest.fixture
def snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files of user/repo in a cache of the hub, of which there are none yet."""
    import huggingface_hub.constants as constants

    commit = "0" * 40
    repo = tmp_path / "hub" / "models--user--repo"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    (repo / "blobs").mkdir()
    snapshot = repo / "snapshots" / commit
    snapshot.mkdir(parents=True)
    for module in ("file_download", "utils._cache_manager", "_snapshot_download"):
        monkeypatch.setattr(
            f"huggingface_hub.{module}.HF_HUB_CACHE",
            str(tmp_path / "hub"),
            raising=False,
        )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return snapshot


def test_what_is_in_the_hub_cache_is_found_there(tmp_path: Path, snapshot: Path):
    (snapshot / "m-Q8_0.gguf").write_bytes(b"GGUF")
    found = Store(tmp_path).find("user/repo").path
    assert found == snapshot / "m-Q8_0.gguf"


def test_other_models_in_the_hub_cache_are_listed_under_names_that_find_them(
    tmp_path: Path, snapshot: Path
):
    store = Store(tmp_path)
    assert store.others() == []
    for name in ("m-UD-Q4_K_XL.gguf", "mmproj-F16.gguf", "README.md", "m-\x1b.gguf"):
        (snapshot / name).write_bytes(b"GGUF")
    (other,) = store.others()
    assert other.manifest.name == "user/repo:UD-Q4_K_XL"
    assert store.find(other.manifest.name).path == other.path
    assert store.find("user/repo:ud-q4_k_xl").path == other.path


def test_what_the_hub_keeps_is_verified_by_the_name_of_its_blob(
    tmp_path: Path, snapshot: Path
):
    blobs = snapshot.parents[1] / "blobs"
    for i, data in enumerate((b"GGUF one", b"GGUF two"), 1):
        blob = blobs / hashlib.sha256(data).hexdigest()
        blob.write_bytes(data)
        (snapshot / f"m-Q8_0-{i:05}-of-00002.gguf").symlink_to(blob)
    store = Store(tmp_path)
    assert store.verify("user/repo").state == "OK"
    blob.write_bytes(b"GGUF 2wo")
    assert store.verify("user/repo")[1:] == (
        "damaged",
        "m-Q8_0-00002-of-00002.gguf has the wrong checksum",
    )
    blob.unlink()
    assert store.verify("user/repo").state == "not here"
    (snapshot / "m-Q4_0.gguf").write_bytes(b"GGUF")
    assert store.verify("user/repo:Q4_0").state == "no checksum known"


def test_what_the_hub_has_not_finished_is_removed_too(tmp_path: Path, snapshot: Path):
    part = snapshot.parents[1] / "blobs" / "abc.incomplete"
    part.write_bytes(b"GG")
    assert Store(tmp_path).remove("user/repo") == [part]
    assert not part.exists()


@pytest.mark.parametrize(
    ("reference", "sentence"),
    [
        ("../../x", "there is no model '../../x'"),
        ("../x", "there is no file '../x', and a repository must be user/name"),
        ("hf:../..", "there is no file '../..', and a repository must be user/name"),
        ("user/..", "'user/..'"),
        ("user/repo.git", "a repository must be user/name as Hugging Face allows it"),
        ("us--er/repo", "a repository must be user/name as Hugging Face allows it"),
        ("hf:user/-x", "a repository must be user/name as Hugging Face allows it"),
        ("\u00fcser/repo", "a repository must be user/name as Hugging Face allows it"),
        ("user/repo:", "there is no model 'user/repo:'"),
        ("user/repo:../x", "there is no model 'user/repo:../x'"),
        ("user/repo:Q4 --x", "there is no model 'user/repo:Q4 --x'"),
        ("user/" + "x" * 5000, "cannot be used as a path: File name too long"),
        ("x" * 5000, "cannot be used as a path: File name too long"),
        ("x/" * 2500, "cannot be used as a path: File name too long"),
        ("user/repo:" + "Q" * 5000, "cannot be used as a path: File name too long"),
        ("hf://" + "/".join(["x"] * 9), "there is no model 'hf://x/x"),
        ("~nouser/x", "'~nouser/x' cannot be used as a path: Could not determine home"),
        ("~nouser/x.toml", "cannot be used as a path: Could not determine home"),
        ("a\x1b[31mb", r"there is no model 'a\x1b[31mb'"),
    ],
)
@pytest.mark.parametrize("offline", [True, False])
def test_names_that_name_nothing_are_one_sentence(
    tmp_path: Path, monkeypatch, reference: str, sentence: str, offline: bool
):
    monkeypatch.chdir(tmp_path)
    store = Store(tmp_path, offline=offline)
    for act in (store.find, store.path, store.pull, store.remove, store.verify):
        with pytest.raises(ModelError) as error:
            act(reference)
        said = str(error.value)
        assert sentence in said
        assert said.isprintable()
        assert len(said) < 600


@pytest.mark.parametrize(
    "name", ["../../m-Q4_0.gguf", "/m.gguf", "a\\..\\m.gguf", "\x1b.gguf", "C:m.gguf"]
)
def test_a_hub_cannot_name_files_elsewhere(tmp_path: Path, monkeypatch, name: str):
    monkeypatch.setattr("huggingface_hub.list_repo_files", lambda repo: [name])
    with pytest.raises(ModelError, match="user/repo on Hugging Face: 'file' must be"):
        Store(tmp_path).pull("user/repo")


def test_of_many_files_a_few_are_named(tmp_path: Path, monkeypatch):
    files = [f"m-{i}\x1b[2J.gguf" for i in range(5000)]
    monkeypatch.setattr("huggingface_hub.list_repo_files", lambda repo: files)
    with pytest.raises(ModelError, match="has no Q9: m-0.* and 4988 more") as error:
        Store(tmp_path).pull("user/repo:Q9")
    assert str(error.value).isprintable()


def test_a_split_model_of_the_hub_is_not_asked_for_without_end(tmp_path, monkeypatch):
    def refuse(*arguments: object, **more: object) -> None:
        raise AssertionError("a part was asked for")

    files = ["m-00001-of-99999.gguf"]
    monkeypatch.setattr("huggingface_hub.list_repo_files", lambda repo: files)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", refuse)
    with pytest.raises(
        ModelError, match="split into 99999 files by its name, but 1 to"
    ):
        Store(tmp_path).pull("user/repo")


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_only_regular_files_are_models_and_manifests(tmp_path: Path, kind: str):
    """Opening a pipe would wait for ever."""
    made = [tmp_path / name for name in ("m.gguf", "m", "m.toml")]
    for path in made:
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "folder":
            path.mkdir()
        else:
            path.symlink_to("/dev/zero")
    inside = tmp_path / "inside.toml"
    inside.write_text(
        'name = "m"\ndescription = "d"\nlicense = "MIT"\nfile = "m.gguf"\nsha256 = '
        f'"{"0" * 64}"\n[source.path]\npath = "{made[0]}"\n'
    )
    store = Store(tmp_path)
    for path in (*made, inside):
        for act in (store.find, store.path, store.pull, store.verify):
            with pytest.raises(ModelError, match=f"(it is|is) a .*{kind}"):
                act(str(path))


@pytest.mark.parametrize("path", ["~nouser/m.gguf", "x" * 300, "a/" * 2040])
def test_a_path_of_a_manifest_that_cannot_be_is_one_sentence(tmp_path: Path, path: str):
    manifest = tmp_path / "mine.toml"
    manifest.write_text(
        'name = "m"\ndescription = "d"\nlicense = "MIT"\nfile = "m.gguf"\n'
        f'[source.path]\npath = "{path}"\n'
    )
    with pytest.raises(ModelError, match="cannot be used as a path|does not exist"):
        Store(tmp_path).pull(str(manifest))


def test_a_manifest_cannot_take_the_place_of_a_known_model(tmp_path: Path):
    known = "smollm2-135m-instruct"
    ours = Store(tmp_path).find(known).manifest
    text = (
        'description = "d"\nlicense = "MIT"\n[source.wheel]\npackage = "evil"\n'
        'version = "1.0"\nmember = "m.gguf"\n'
    )
    mine = tmp_path / "mine.toml"
    for name in (known, known.upper()):
        mine.write_text(f'name = "{name}"\nfile = "{ours.file}"\n{text}')
        for act in (Store(tmp_path).find, Store(tmp_path).remove):
            with pytest.raises(ModelError, match="is the name of a built-in model"):
                act(str(mine))
    mine.write_text(f'name = "other"\nfile = "{ours.file}"\n{text}')
    assert Store(tmp_path).find(str(mine)).manifest.name == "other"


def test_a_manifest_of_a_path_is_verified_by_its_checksum(tmp_path: Path):
    gguf, manifest = tmp_path / "m.gguf", tmp_path / "mine.toml"
    gguf.write_bytes(b"GGUF")
    text = (
        'name = "m"\ndescription = "d"\nlicense = "MIT"\nfile = "m.gguf"\n'
        f'size = 4\nsha256 = "{hashlib.sha256(b"GGUF").hexdigest()}"\n'
        f'[source.path]\npath = "{gguf}"\n'
    )
    manifest.write_text(text)
    store = Store(tmp_path)
    assert store.verify(str(manifest)).state == "OK"
    assert store.verify(str(gguf)).state == "no checksum known"
    gguf.write_bytes(b"GGUB")
    assert store.verify(str(manifest)).problem == "m.gguf has the wrong checksum"
    gguf.unlink()
    assert store.verify(str(manifest)).state == "not here"
