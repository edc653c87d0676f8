from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

from receiver.deadlines import Deadlines

Use = Callable[[Deadlines], Awaitable[None]]


def run(use: Use, after_s: float = 0.02) -> None:
    async def main() -> None:
        await use(Deadlines(asyncio.get_running_loop(), after_s))

    asyncio.run(main())


def test_what_is_not_over_in_time_is_ended_in_order_and_told_late() -> None:
    async def use(deadlines: Deadlines) -> None:
        ended: list[int] = []
        began_s = asyncio.get_running_loop().time()
        waits = [deadlines.begin(partial(ended.append, number)) for number in range(4)]
        waits[1].finish()
        await asyncio.sleep(0.1)
        assert ended == [0, 2, 3]
        assert [wait.is_late for wait in waits] == [True, False, True, True]
        assert all(wait.at_s >= began_s + 0.02 for wait in waits)

    run(use)


def test_nothing_is_ended_before_its_time() -> None:
    async def use(deadlines: Deadlines) -> None:
        loop = asyncio.get_running_loop()
        ended_at_s: list[float] = []
        waits = []
        for _ in range(3):
            waits.append(deadlines.begin(lambda: ended_at_s.append(loop.time())))
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.1)
        assert len(ended_at_s) == 3
        assert all(at_s >= wait.at_s for at_s, wait in zip(ended_at_s, waits, strict=True))

    run(use)


def test_a_wait_that_begins_after_all_others_were_ended_is_ended_too() -> None:
    async def use(deadlines: Deadlines) -> None:
        for _ in range(2):
            ended = asyncio.Event()
            deadlines.begin(ended.set)
            await asyncio.wait_for(ended.wait(), 5)

    run(use)


def test_waits_that_are_over_are_forgotten() -> None:
    async def use(deadlines: Deadlines) -> None:
        for _ in range(1000):
            deadlines.begin(lambda: None).finish()
        assert len(deadlines._waits) == 1

    run(use, after_s=3600)


def test_a_wait_may_begin_while_another_is_ended() -> None:
    async def use(deadlines: Deadlines) -> None:
        ended = asyncio.Event()
        deadlines.begin(lambda: deadlines.begin(ended.set))
        await asyncio.wait_for(ended.wait(), 5)

    run(use)
