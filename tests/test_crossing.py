from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

import pytest

from receiver import crossing as crossing_module
from receiver.crossing import Crossing


class Thread:
    """Counts how often it was woken, and after how many deliveries each time."""

    def __init__(self) -> None:
        self.submitted = 0
        self.woken_after: list[int] = []

    def wake(self) -> None:
        self.woken_after.append(self.submitted)


def run(use: Callable[[Crossing, Thread], object]) -> Thread:
    thread = Thread()

    async def main() -> None:
        await use(Crossing(asyncio.get_running_loop(), thread.wake), thread)

    asyncio.run(main())
    return thread


async def settle(rounds: int = 5) -> None:
    for _ in range(rounds):
        await asyncio.sleep(0)


def submit(crossing: Crossing, thread: Thread) -> None:
    thread.submitted += 1
    crossing.wake_thread_soon()


def test_what_is_at_hand_together_wakes_the_thread_once() -> None:
    async def use(crossing: Crossing, thread: Thread) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(5):
            loop.call_soon(submit, crossing, thread)
        await settle()
        submit(crossing, thread)
        await settle()

    assert run(use).woken_after == [5, 6]


def stream(crossing: Crossing, thread: Thread, count: int) -> None:
    """Submit one in each round of the loop, before the round in which the thread could be woken."""
    if count > 1:
        asyncio.get_running_loop().call_soon(stream, crossing, thread, count - 1)
    submit(crossing, thread)


def test_what_comes_in_the_next_round_of_the_loop_is_waited_for() -> None:
    async def use(crossing: Crossing, thread: Thread) -> None:
        stream(crossing, thread, 4)
        await settle(10)

    assert run(use).woken_after == [4]


@pytest.mark.parametrize(
    ("name", "value", "most"), [("MAX_GATHERED", 8, 8), ("MAX_GATHER_S", 0.0, 2)]
)
def test_a_stream_without_end_does_not_keep_the_thread_waiting(
    name: str, value: float, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crossing_module, name, value)

    async def use(crossing: Crossing, thread: Thread) -> None:
        stream(crossing, thread, 100)
        await settle(300)

    woken_after = run(use).woken_after
    assert woken_after[0] <= most
    assert len(woken_after) >= 100 // most
    assert woken_after[-1] == 100


@pytest.mark.parametrize(
    ("name", "value", "woken_after"),
    [("MAX_GATHERED", 8, [8, 16, 20]), ("MAX_GATHER_S", 0.0, [*range(2, 21, 2)])],
)
def test_one_round_that_brings_many_does_not_keep_the_thread_waiting(
    name: str, value: float, woken_after: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crossing_module, name, value)

    async def use(crossing: Crossing, thread: Thread) -> None:
        for _ in range(20):
            submit(crossing, thread)
        await settle()

    assert run(use).woken_after == woken_after


def test_results_and_errors_come_back_from_the_thread_in_one_round() -> None:
    futures: list[Future[None]] = [Future() for _ in range(20)]

    def resolve() -> None:
        for number, future in enumerate(futures):
            if number % 2:
                future.set_exception(ValueError(number))
            else:
                future.set_result(None)

    async def use(crossing: Crossing, _thread: Thread) -> None:
        waiting = asyncio.gather(
            *(crossing.wait(future, 10) for future in futures), return_exceptions=True
        )
        await settle()
        resolver = threading.Thread(target=resolve)
        resolver.start()
        found = await waiting
        resolver.join(10)
        assert found[::2] == [None] * 10
        assert [error.args for error in found[1::2]] == [(n,) for n in range(1, 20, 2)]

    run(use)


def test_a_future_that_is_resolved_already_is_no_wait() -> None:
    done: Future[None] = Future()
    done.set_result(None)

    async def use(crossing: Crossing, _thread: Thread) -> None:
        await asyncio.wait_for(crossing.wait(done, 10), 5)

    run(use)


def test_who_waits_too_long_is_told_so() -> None:
    async def use(crossing: Crossing, _thread: Thread) -> None:
        began_s = time.monotonic()
        with pytest.raises(TimeoutError):
            await crossing.wait(Future(), 0.02)
        assert time.monotonic() - began_s >= 0.02

    run(use)


def test_a_loop_that_could_not_be_told_is_told_by_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    futures: list[Future[None]] = [Future(), Future()]

    async def use(crossing: Crossing, _thread: Thread) -> None:
        waiting = asyncio.gather(*(crossing.wait(future, 10) for future in futures))
        await settle()
        with monkeypatch.context() as patch:
            patch.setattr(crossing._loop, "call_soon_threadsafe", _no_memory)
            futures[0].set_result(None)
        futures[1].set_result(None)
        await asyncio.wait_for(waiting, 5)

    run(use)


def _no_memory(*_: object) -> None:
    raise MemoryError


def test_a_thread_that_ends_after_the_loop_raises_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    future: Future[None] = Future()

    async def use(crossing: Crossing, _thread: Thread) -> None:
        with pytest.raises(TimeoutError):
            await crossing.wait(future, 0)

    run(use)
    future.set_result(None)
    assert caplog.messages == []
