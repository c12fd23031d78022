"""Run by `test_ray` in a process of its own: Ray leaves threads, and warns."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgecs.engines.load_options import LoadOptions
from edgecs.errors import EdgecsError
from edgecs.fleet.ray_pool import RayFleet, connected
from edgecs.fleet.spread import results
from edgecs.fleet.worker_target import WorkerTarget
from edgecs.runtime.loader import load
from edgecs_convert.distill.data import Answerer, Wanted, write_samples
from edgecs_convert.distill.fleet_work import AnswerSetup, checked, part_items
from tests.convert.samples import wanted
from tests.fleet.ray_workers import Mortal, Unable


def main(model: Path, folder: Path) -> None:
    """Writes a data set alone and with workers, one of which is killed."""
    options = LoadOptions(n_ctx=256, threads=1)
    target = WorkerTarget.of(str(model), model, options)
    told: list[str] = []
    plan, cancel = wanted(600), threading.Event()

    def write(name: str, opened: Any = None) -> None:
        write_samples(
            loaded.model,
            folder / name,
            plan,
            cancel,
            told.append,
            threads=1,
            opened=opened,
        )

    @contextmanager
    def answering(w: Wanted) -> Iterator[Answerer]:
        setup = Mortal(AnswerSetup(target, w), folder / "killed")
        with fleet.pool(setup, threads=1) as pool:

            def answer(tasks: Any) -> Any:
                parts = part_items(tasks, 4)
                for item, found in results(
                    pool, lambda kind: next(parts, None), cancel, told.append
                ):
                    yield from checked(item, found)

            yield answer

    with load(model, options, cancel=cancel) as loaded:
        write("alone")
        with connected("local", told.append) as fleet:
            write("apart", answering)
            refused = _refusal(fleet, cancel)
    print(json.dumps({"told": told, "refused": refused}))


def _refusal(fleet: RayFleet, cancel: threading.Event) -> str:
    with fleet.pool(Unable(), threads=1) as pool:
        try:
            return str([*results(pool, lambda kind: None, cancel)])
        except EdgecsError as error:
            return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
