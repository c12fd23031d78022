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
    """Runs what a drafter computes, in a thread that suits; closes.

    watch: through which every call of a session has to go. provider: the execution
    provider that was chosen; provider_notes: why each of those that were preferred to
    it was not. Raises ModelError where the manifest names a file that is not there.
    """

    def __init__(self, manifest: DrafterManifest, cancel: threading.Event) -> None:
        check_file(manifest)
        self._manifest = manifest
        self._aside, self.watch = Aside(has_amx()), Watch(cancel)
        self.provider = ""
        self.provider_notes: dict[str, str] = {}

    def open(
        self,
        works: Callable[[ort.InferenceSession, str], T],
        *,
        threads: int,
        providers: Sequence[str] | None,
    ) -> T:
        """What `works` makes of the graph, see `providers.open_best`."""
        done, opened = self._aside(
            onnx_providers.open_best,
            self._manifest.path,
            works,
            threads=threads,
            providers=providers,
        )
        self.provider, self.provider_notes = opened.provider, opened.notes
        return done

    def run(self, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """What a call gives; raises ModelError where the engine fails, or Cancelled."""
        try:
            return self._aside(call, *args, **kwargs)
        except onnx_providers.ENGINE_ERRORS as error:
            raise ModelError(
                f"the drafter {self._manifest.name} failed in ONNX Runtime: "
                f"{onnx_providers.reason(error)}"
            ) from error

    def close(self) -> None:
        """Ends its threads; may be called again."""
        self._aside.close()
        self.watch.close()
