"""What the workers of a Ray cluster do in tests: one of them ends itself, once."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgecs.errors import ModelError
from edgecs.fleet.host import Prepared
from edgecs_convert.distill.fleet_work import AnswerSetup


@dataclass(frozen=True)
class Mortal:
    """A worker that answers, and is killed in the middle of the second item.

    file: it exists after that. Only one worker dies, as the file is created by one.
    """

    setup: AnswerSetup
    file: Path

    @contextmanager
    def opened(self) -> Iterator[Prepared]:
        with self.setup.opened() as prepared:
            asked = 0

            def compute(tasks: Any) -> Any:
                nonlocal asked
                asked += 1
                found = prepared.compute(tasks)
                if asked == 2:
                    try:
                        self.file.touch(exist_ok=False)
                    except FileExistsError:
                        return found
                    os.kill(os.getpid(), signal.SIGKILL)
                return found

            yield Prepared(compute)


@dataclass(frozen=True)
class Unable:
    """A worker that cannot prepare itself."""

    @contextmanager
    def opened(self) -> Iterator[Prepared]:
        raise ModelError("the file is another one")
        yield
