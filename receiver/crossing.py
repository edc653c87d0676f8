"""Between an event loop and the writer's thread, both ways, with one wake-up for many deliveries.

Wake-ups and syncs cost time that several deliveries can share. So the loop lets the thread have
what it took only when nothing more is at hand, and the thread tells the loop once of all that one
sync has made durable.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future

# What waits for more to come goes to the writer then, all the same.
MAX_GATHERED = 32
MAX_GATHER_S = 0.005


class Crossing:
    """Belongs to one event loop; `wake_thread` is called from it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, wake_thread: Callable[[], object]) -> None:
        self._loop = loop
        self._wake_thread = wake_thread
        self._gathered = 0  # since the thread was woken last
        self._began_at_s = 0.0
        self._is_scheduled = False
        self._resolved: deque[asyncio.Future[None]] = deque()
        self._is_told = False

    def wake_thread_soon(self) -> None:
        """Wake the thread when the requests that are at hand now have been seen to."""
        self._gathered += 1
        if self._gathered == 1:
            self._began_at_s = self._loop.time()
        elif self._is_enough():
            self._wake()
        if not self._is_scheduled:
            self._loop.call_soon(self._wake_or_gather, self._gathered)
            self._is_scheduled = True

    async def wait(self, future: Future[None], timeout_s: float) -> None:
        """Give what the future gives. Raises TimeoutError, or what the future raises."""
        waiter = self._loop.create_future()
        future.add_done_callback(lambda _: self._tell(waiter))
        timer = self._loop.call_later(timeout_s, _resolve, waiter)
        try:
            await waiter
        finally:
            timer.cancel()
        if not future.done():
            raise TimeoutError
        future.result()

    def _wake_or_gather(self, seen: int) -> None:
        """Wake the thread if nothing has come since the loop's last round; else wait for more."""
        self._is_scheduled = self._gathered > seen
        if self._is_scheduled:
            self._loop.call_soon(self._wake_or_gather, self._gathered)
        elif self._gathered:
            self._wake()

    def _is_enough(self) -> bool:
        """Asked each time: one round of the loop may bring more than the thread can take."""
        is_late = self._loop.time() - self._began_at_s > MAX_GATHER_S
        return is_late or self._gathered >= MAX_GATHERED

    def _wake(self) -> None:
        self._gathered = 0
        self._wake_thread()

    def _tell(self, waiter: asyncio.Future[None]) -> None:
        """Called by the thread that has resolved a future."""
        self._resolved.append(waiter)
        if self._is_told or self._loop.is_closed():
            return
        self._is_told = True  # first: the loop may clear it before the call is over
        try:
            self._loop.call_soon_threadsafe(self._resolve_all)
        except BaseException:
            self._is_told = False
            raise

    def _resolve_all(self) -> None:
        self._is_told = False  # first: what is appended from now on is told again
        while self._resolved:
            _resolve(self._resolved.popleft())


def _resolve(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
