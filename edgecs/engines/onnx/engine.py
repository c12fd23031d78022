"""ONNX Runtime with the graph of one drafter: opened, called and closed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import ParamSpec, TypeVar

import onnxruntime as ort

from edgecs.engines.llama.library import has_amx
from edgecs.engines.onnx import providers as onnx_providers
from edgecs.engines.onnx.thread import Aside
from edgecs.engines.onnx.watchdog import Watch
from edgecs.errors import ModelError
from edgecs.hub.drafter_manifest import DrafterManifest, check_file

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class Engine:
    """Runs a drafter's calls, in a separate thread where needed; has to be closed.

    watch: the watchdog that every call of a session has to use. Several drafters of one
    thread may share it: each opens it once and closes it once, in any order. Raises
    ModelError if a file that the manifest names is missing.
    """

    def __init__(self, manifest: DrafterManifest, cancel: threading.Event) -> None:
        check_file(manifest)
        self._manifest = manifest
        self._aside, self.watch = Aside(has_amx()), Watch(cancel)
        self._opened: onnx_providers.Opened | None = None
        self._users = 0

    @property
    def provider(self) -> str:
        """The chosen execution provider; empty before `open`."""
        return self._opened.provider if self._opened else ""

    @property
    def provider_notes(self) -> dict[str, str]:
        """Why each preferred provider was not chosen."""
        return self._opened.notes if self._opened else {}

    def open(
        self,
        works: Callable[[ort.InferenceSession, str], T],
        *,
        threads: int,
        providers: Sequence[str] | None,
    ) -> T:
        """The result of `works` for the graph, see `providers.open_best`.

        A graph that is open already is not opened again, whatever the arguments.
        """
        self._users += 1
        if self._opened is not None:
            return self.run(works, self._opened.session, self._opened.provider)
        done, self._opened = self._aside(
            onnx_providers.open_best,
            self._manifest.path,
            works,
            threads=threads,
            providers=providers,
        )
        return done

    def run(self, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """The result of a call; raises ModelError if the engine fails, or Cancelled."""
        try:
            return self._aside(call, *args, **kwargs)
        except onnx_providers.ENGINE_ERRORS as error:
            raise ModelError(
                f"the drafter {self._manifest.name} failed in ONNX Runtime: "
                f"{onnx_providers.reason(error)}"
            ) from error

    def close(self) -> None:
        """End its threads if no drafter uses it any more."""
        self._users -= 1
        if self._users <= 0:
            self._aside.close()
            self.watch.close()
