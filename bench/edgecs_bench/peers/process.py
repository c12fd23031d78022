"""A configuration of a peer that runs in its own process."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgecs.engines import NO_TELEMETRY
from edgecs_bench.peers.child_process import Line
from edgecs_bench.peers.failure import PeerFailed
from edgecs_bench.peers.table import Config, Peer
from edgecs_bench.peers.venvs import venv_for

SPEAKER = Path(__file__).with_name("adapter_main.py")
# Each threading library has its own variable for the number of threads.
_THREADS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "RAYON_NUM_THREADS",
)
_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


@dataclass(frozen=True)
class PeerAnswer:
    """A peer's answer to a prompt, and its times as seen by the client."""

    tokens: list[int]  # including the end token, if there is one
    ttft_s: float
    decode_s: float  # from the first token to the last
    tested: int | None  # drafted tokens; None: no drafts, or not reported
    accepted: int | None
    peak_rss_mib: float  # of the process so far; 0: unknown


class PeerProcess:
    """A peer with its model loaded; a context manager.

    draft: the draft model for configurations that need one. root: the folder of all
    peers' environments. hello_s, answer_s: time limits for loading and for an answer.
    Raises PeerFailed.
    """

    def __init__(
        self,
        peer: Peer,
        config: Config,
        *,
        model: Path,
        draft: Path | None,
        n_ctx: int,
        threads: int,
        root: Path,
        progress: Callable[[str], None],
        hello_s: float = 600.0,
        answer_s: float = 600.0,
    ) -> None:
        self._name = peer.name
        self._answer_s = answer_s
        python = venv_for(peer, root, progress)
        progress(f"{peer.name}: loading {model.name}")
        self._line = Line(
            peer.name,
            [str(python), "-I", str(SPEAKER), str(peer.script)],
            environment(threads),
        )
        hello = {
            "model": str(model.absolute()),
            "draft": str(draft.absolute()) if draft and config.get("draft") else None,
            "n_ctx": n_ctx,
            "threads": threads,
            "config": dict(config),
        }
        try:
            ready = self._line.ask(hello, hello_s)
            self.version, self.load_s = str(ready["version"]), float(ready["load_s"])
        except KeyError as error:
            self.close()
            raise PeerFailed(f"{peer.name} did not report that it is ready") from error
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """The id of the process."""
        return self._line.pid

    def answer(self, ids: Sequence[int], text: str, n: int) -> PeerAnswer:
        """Generates up to n tokens greedily, from an empty cache.

        Raises PeerFailed; after an error that the peer reports it can be called again.
        """
        question = {"ids": list(ids), "text": text, "n": n}
        fields = self._line.ask(question, self._answer_s)
        try:
            return PeerAnswer(**fields)
        except TypeError as error:
            self.close()
            raise PeerFailed(f"{self._name} gave an invalid answer: {error}") from error

    def close(self) -> None:
        """Ends the process and all processes it started; may be called again."""
        self._line.close()

    def __enter__(self) -> PeerProcess:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def environment(threads: int) -> dict[str, str]:
    """This process's environment with a thread limit, without Python and network."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    return kept | dict.fromkeys(_THREADS, str(threads)) | _OFFLINE | NO_TELEMETRY
