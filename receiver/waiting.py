"""The deliveries that wait for the disk: a queue with bounds, between many threads and one."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from dataclasses import dataclass

from receiver.errors import SpoolFailedError, SpoolFullError
from receiver.record import Delivery

MAX_COUNT = 1024
MAX_BYTES = 32 * 1024 * 1024


@dataclass(frozen=True)
class Waiting:
    """A delivery, and the future that tells its request when it is durable."""

    delivery: Delivery
    future: Future[None]


class WaitingQueue:
    """Takes deliveries until it is full or closed; gives all that waits at once."""

    def __init__(self, max_count: int = MAX_COUNT, max_bytes: int = MAX_BYTES) -> None:
        self._max_count = max_count
        self._max_bytes = max_bytes
        self._changed = threading.Condition()
        self._waiting: list[Waiting] = []
        self._size_bytes = 0
        self._is_closed = False

    @property
    def is_closed(self) -> bool:
        """Whether nothing more is taken."""
        return self._is_closed

    @property
    def is_full(self) -> bool:
        """Whether the next delivery would be refused, whatever its size."""
        return len(self._waiting) >= self._max_count or self._size_bytes >= self._max_bytes

    def put(self, delivery: Delivery, *, wake: bool = True) -> Future[None]:
        """Add a delivery. Raises SpoolFullError, or SpoolFailedError when closed.

        Who does not wake the taker now has to do so soon.
        """
        waiting = Waiting(delivery, Future())
        with self._changed:
            self._refuse_if_full(len(delivery.body))
            self._waiting.append(waiting)
            self._size_bytes += len(delivery.body)
            if wake:
                self._changed.notify()
        return waiting.future

    def wake(self) -> None:
        """Let the taker have what waits."""
        with self._changed:
            self._changed.notify()

    def take_all(self, timeout_s: float | None) -> list[Waiting]:
        """Wait until there is something, or the time is over; leave out what was given up."""
        with self._changed:
            if not self._waiting and not self._is_closed:
                self._changed.wait(timeout_s)
            taken, self._waiting, self._size_bytes = self._waiting, [], 0
        return [waiting for waiting in taken if waiting.future.set_running_or_notify_cancel()]

    def close(self) -> None:
        """Take nothing more; what waits can still be taken out."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()

    def _refuse_if_full(self, size_bytes: int) -> None:
        if self._is_closed:
            raise SpoolFailedError("the writer is closed")
        if len(self._waiting) >= self._max_count:
            raise SpoolFullError(f"{len(self._waiting)} deliveries wait for the disk already")
        if self._waiting and self._size_bytes + size_bytes > self._max_bytes:
            raise SpoolFullError(f"{self._size_bytes} bytes wait for the disk already")
