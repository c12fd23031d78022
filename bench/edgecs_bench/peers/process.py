"""A configuration of a peer at work, in a process of its own."""

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
# Each library of threads has its own name for how many it may start.
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
    """What a peer said to a prompt, and how long it took as its client sees it."""

    tokens: list[int]  # the end token too, where there is one
    ttft_s: float
    decode_s: float  # from the first token to the last
    tested: int | None  # tokens of drafts; None: no drafts, or the peer does not tell
    accepted: int | None
    peak_rss_mib: float  # of the process so far; 0: the system does not tell


class PeerProcess:
    """A peer with its model loaded; a context manager.

    draft: handed on to the configurations that need one. root: where the environments
    of all peers are kept. hello_s, answer_s: how long to wait for the model and for an
    answer. Raises PeerFailed.
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
        progress(f"{peer.name} loads {model.name}")
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
            raise PeerFailed(f"{peer.name} does not say that it is ready") from error
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """Of the process that answers."""
        return self._line.pid

    def answer(self, ids: Sequence[int], text: str, n: int) -> PeerAnswer:
        """Up to n tokens after a prompt, greedily, from an empty cache.

        Raises PeerFailed; after an error of the peer's own it can be asked again.
        """
        question = {"ids": list(ids), "text": text, "n": n}
        fields = self._line.ask(question, self._answer_s)
        try:
            return PeerAnswer(**fields)
        except TypeError as error:
            self.close()
            raise PeerFailed(f"{self._name} gave no answer: {error}") from error

    def close(self) -> None:
        """Ends the process and all it started; may be called again."""
        self._line.close()

    def __enter__(self) -> PeerProcess:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def environment(threads: int) -> dict[str, str]:
    """This process's with a number of threads, without its Python and the network."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    return kept | dict.fromkeys(_THREADS, str(threads)) | _OFFLINE | NO_TELEMETRY
