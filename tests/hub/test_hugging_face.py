"""The hub, as far as it can be known without one."""

from __future__ import annotations

import errno
import itertools
import logging
import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from edgecs.errors import FetchError
from edgecs.hub.hugging_face import fetch_from_hub
from edgecs.hub.manifest import HubSource
from edgecs.hub.store import Store
from tests.network import Server


class Foreign(Exception):
    """An exception of a library that is not there."""

    response = None


def raised(*causes: BaseException) -> Exception:
    """The first one, raised from the second one, and so on."""
    for error, cause in itertools.pairwise(causes):
        error.__cause__ = cause
    assert isinstance(causes[0], Exception)
    return causes[0]


def foreign(module: str, text: str) -> Exception:
    return type("ConnectError", (Foreign,), {"__module__": module})(text)


NO_NAME = socket.gaierror(-2, "Name or service not known")
POOL = "HTTPSConnectionPool(host='huggingface.co'): Max retries (Caused by ...)"


@pytest.mark.parametrize(
    "error",
    [
        raised(foreign("requests.exceptions", POOL), foreign("urllib3", POOL), NO_NAME),
        raised(foreign("httpx", "[Errno -2]"), foreign("httpcore", "[...]"), NO_NAME),
        raised(FileNotFoundError("not in the cache"), foreign("httpx", "x"), NO_NAME),
        raised(
            FileNotFoundError("not in the cache"),
            foreign("httpx2", "[Errno -2]"),
            foreign("httpcore2", "Name or service not known"),
        ),
    ],
)
def test_a_hub_that_is_not_reached_is_one_sentence(
    error: Exception, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    def fail(*arguments: object, **more: object) -> None:
        raise error

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    monkeypatch.setattr("huggingface_hub.list_repo_files", fail)
    ending = (
        "because Hugging Face was not reached (Name or service not known): check the "
        "connection, or use --offline with a model that is here"
    )
    with pytest.raises(FetchError) as caught:
        fetch_from_hub(HubSource("user/repo", "m.gguf"))
    assert str(caught.value) == f"user/repo/m.gguf could not be fetched {ending}"
    with pytest.raises(FetchError) as caught:
        Store(tmp_path).pull("user/repo")
    assert str(caught.value) == f"user/repo could not be looked up {ending}"


def test_what_the_hub_retries_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    records: list[logging.LogRecord] = []
    logger = logging.getLogger("huggingface_hub")
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", records.append)
    monkeypatch.setattr(logger, "handlers", [handler])

    def fail(*arguments: object, **more: object) -> None:
        for n in range(3):
            hub = logging.getLogger("huggingface_hub.utils")
            hub.warning("MaxRetryError(...)")
            hub.warning("Retrying in 1s [Retry %d/5].", n)
        raise ConnectionError("refused")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    with pytest.raises(FetchError, match=r"not reached .refused.: check the conn"):
        fetch_from_hub(HubSource("user/repo", "m.gguf"))
    assert not records
    assert caplog.messages == ["Hugging Face does not answer, trying again"]
    assert logger.handlers == [handler]
    assert logger.propagate


def test_what_the_hub_answers_and_what_the_disk_says_is_kept(
    monkeypatch: pytest.MonkeyPatch,
):
    answer = foreign("httpx", "404 Client Error\nfor url")
    answer.response = object()  # type: ignore[attr-defined]
    for error, words in (
        (raised(FileNotFoundError("not in the cache"), answer), "404 Client Error"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (raised(ConnectionError("offline mode is enabled")), "offline mode is enabled"),
    ):

        def fail(*arguments: object, error: Exception = error, **more: object) -> None:
            raise error

        monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
        with pytest.raises(FetchError, match=f"could not be fetched.*{words}"):
            fetch_from_hub(HubSource("user/repo", "m.gguf"))


def test_the_hub_protocol(server: Server, tmp_path: Path):
    """huggingface_hub against a server that answers like the hub."""
    commit, data = "0" * 40, b"GGUF and so on"
    files = {"m-Q4_K_M.gguf": data, "m-Q8_0.gguf": b"GGUF of another size"}
    server.hub = (commit, files)
    script = """
        import sys
        from pathlib import Path
        from edgecs.hub.store import Store
        store = Store(Path("unused"))
        assert store.find("user/repo").path is None
        print(store.pull("user/repo"))
        print(store.pull("user/repo:q8_0"))
        print(Store(Path("unused"), offline=True).path("user/repo:Q8_0"))
        print(*store.remove("user/repo:Q8_0"))
        assert store.find("user/repo:Q8_0").path is None
        print(store.find("user/repo").path)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "HF_ENDPOINT": server.url,
            "HF_HOME": str(tmp_path),
            "HF_HUB_DISABLE_XET": "1",
        },
    )
    lines = done.stdout.splitlines()
    assert [Path(line).name for line in lines] == [
        "m-Q4_K_M.gguf",
        "m-Q8_0.gguf",
        "m-Q8_0.gguf",
        "m-Q8_0.gguf",
        "m-Q4_K_M.gguf",
    ], done
    assert Path(lines[0]).read_bytes() == data
    assert not Path(lines[1]).exists()


def test_a_repository_that_is_not_there_is_one_sentence(server: Server, tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-m", "edgecs", "models", "pull", "user/repo"],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path)},
    )
    assert done.returncode == 6
    assert len(done.stderr.splitlines()) == 1
    sentence = "edgecs models pull: user/repo could not be looked up: "
    assert done.stderr.startswith(sentence)
    assert "404" in done.stderr


def test_a_hub_that_is_away_is_one_sentence(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-m", "edgecs", "models", "pull", "user/repo"],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "HF_ENDPOINT": "http://127.0.0.1:9",
            "HF_HOME": str(tmp_path),
        },
    )
    assert done.returncode == 6
    assert done.stderr == (
        "edgecs models pull: user/repo could not be looked up because Hugging Face was "
        "not reached (Connection refused): check the connection, or use --offline with "
        "a model that is here\n"
    )
