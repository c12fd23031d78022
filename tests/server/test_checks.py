"""Checks of schemas delay each other only, and are bounded."""

from __future__ import annotations

import asyncio
import threading

import pytest

from edgecs.server.batching.checks import Checks
from edgecs.server.batching.job import Busy

WAIT = 60.0


def test_a_check_that_nobody_waits_for_does_not_begin():
    go_on, begun = threading.Event(), list[int]()

    def check(number: int) -> int:
        begun.append(number)
        assert go_on.wait(WAIT)
        return number

    async def go() -> None:
        checks = Checks(5)
        tasks = [asyncio.create_task(checks.run(check, i)) for i in range(5)]
        while len(begun) < 2:
            await asyncio.sleep(0.001)
        with pytest.raises(Busy):
            await checks.run(check, 5)
        for task in tasks[2:4]:
            task.cancel()
        await asyncio.wait(tasks[2:4])
        again = asyncio.create_task(checks.run(check, 6))
        await asyncio.sleep(0)
        go_on.set()
        assert await asyncio.gather(*tasks[:2], tasks[4], again) == [0, 1, 4, 6]
        checks.close()

    asyncio.run(asyncio.wait_for(go(), WAIT))
    assert sorted(begun) == [0, 1, 4, 6]


def test_errors_of_a_check_are_its_result():
    def fail() -> None:
        raise ValueError("no schema")

    async def go() -> None:
        checks = Checks(1)
        for _ in range(3):
            with pytest.raises(ValueError, match="no schema"):
                await checks.run(fail)
        checks.close()

    asyncio.run(go())
