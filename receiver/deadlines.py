"""End waits that take too long, all after the same time: one timer for as many as there are.

A timer for each is a good part of what a delivery costs, and nearly none of them ever goes off.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable


class Wait:
    """One wait; late if it was ended before its owner said that it is over."""

    __slots__ = ("at_s", "end", "is_late")

    def __init__(self, at_s: float, end: Callable[[], object]) -> None:
        self.at_s = at_s
        self.end: Callable[[], object] | None = end  # None: it is over
        self.is_late = False

    def finish(self) -> None:
        """Say that nothing is waited for any more."""
        self.end = None


class Deadlines:
    """Belongs to one event loop; the first wait to begin is the first to be late."""

    def __init__(self, loop: asyncio.AbstractEventLoop, after_s: float) -> None:
        self._loop = loop
        self._after_s = after_s
        self._waits: deque[Wait] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, end: Callable[[], object]) -> Wait:
        """Begin a wait; `end` is called if it is not over in time."""
        self._forget()
        wait = Wait(self._loop.time() + self._after_s, end)
        self._waits.append(wait)
        self._set_timer()
        return wait

    def _forget(self) -> None:
        """Forget the first waits that are over; what began after one that is not has to stay."""
        while self._waits and self._waits[0].end is None:
            self._waits.popleft()

    def _set_timer(self) -> None:
        if self._timer is None and self._waits:
            self._timer = self._loop.call_at(self._waits[0].at_s, self._end_late)

    def _end_late(self) -> None:
        self._timer = None
        now_s = self._loop.time()
        while self._waits and self._waits[0].at_s <= now_s:
            wait = self._waits.popleft()
            if wait.end is not None:
                wait.is_late = True
                wait.end()
        self._forget()
        self._set_timer()
