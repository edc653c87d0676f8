"""Append deliveries durably: one writer thread a process, many requests a sync (group commit).

A request submits its delivery and gets a future; the thread takes all that waits, writes once,
syncs once, and only then resolves the futures of the whole batch. There is no timer: the sync
before is the time in which the next batch gathers. What cannot be taken is refused at once or
through the future; nothing is acknowledged that is not durable.

The thread starts at the first delivery, and again after a fork: no descriptor, lock or queue is
shared between processes.
"""

from __future__ import annotations

import logging
import threading
from concurrent.futures import Future

from receiver.clock import Clock
from receiver.config import SpoolSettings
from receiver.disk import Disk
from receiver.errors import DeliveryError, SpoolFailedError, SpoolFullError
from receiver.fork import call_after_fork
from receiver.log import log_event
from receiver.record import Delivery
from receiver.recovery import Recovered, recover
from receiver.rotation import Rotation
from receiver.segment import Spool
from receiver.waiting import Waiting, WaitingQueue

__all__ = ["Recovered", "Writer", "recover"]

SLOW_APPEND_S = 1.0
STUCK_S = 2.0  # a commit or a seal that takes longer makes readiness red while it lasts
FAILING_S = 30.0  # so long readiness stays red after a failure that no success has followed


class Writer:
    """The only writer of this process; may be called from any thread."""

    def __init__(
        self,
        spool: Spool,
        settings: SpoolSettings,
        *,
        disk: Disk | None = None,
        clock: Clock | None = None,
        queue: WaitingQueue | None = None,
    ) -> None:
        self._clock = clock or Clock()
        self._rotation = Rotation(spool, settings, disk or Disk(), self._clock)
        self._queue = queue or WaitingQueue()
        self._start_lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._failed_at_s: float | None = None
        self._began_at_s: float | None = None  # when the thread turned to the disk; None: it waits
        call_after_fork(self._start_over)

    def submit(self, delivery: Delivery, *, wake: bool = True) -> Future[None]:
        """Hand a delivery to the writer; the future resolves when it is durable.

        Without `wake`, it waits until `wake` is called, or another delivery wakes the writer: who
        has more deliveries at hand gets them into one sync.

        Raises SpoolFullError or SpoolFailedError; the future may fail with the same.
        """
        future = self._queue.put(delivery, wake=wake)
        if self._thread is None:
            try:
                self._start_thread()
            except RuntimeError as error:
                # The sender is told to come again, so nobody waits for this one any more.
                future.cancel()
                self._failed_at_s = self._clock.monotonic_s()
                raise SpoolFailedError(f"the writer's thread did not start: {error}") from error
        return future

    def wake(self) -> None:
        """Let the writer turn to what was submitted without waking it."""
        self._queue.wake()

    def problem(self) -> str | None:
        """Say why the writer would not take a delivery now; None if it would."""
        if self._queue.is_closed:
            return "the writer is closed"
        # Before the disk is asked, which may not answer us either.
        if (stuck := self._stuck()) is not None:
            return stuck
        try:
            if not self._rotation.has_space():
                return "less space is left than spool.min_free_bytes"
        except OSError as error:
            return f"the spool cannot be reached: {error}"
        failed_at_s = self._failed_at_s
        if failed_at_s is not None and self._clock.monotonic_s() - failed_at_s < FAILING_S:
            return "the last write failed"
        return None

    def _stuck(self) -> str | None:
        began_at_s = self._began_at_s
        if began_at_s is not None and self._clock.monotonic_s() - began_at_s > STUCK_S:
            return f"the disk has not answered for more than {STUCK_S:g} s"
        if self._queue.is_full:
            return "too much waits for the disk already"
        return None

    def close(self) -> None:
        """Write what waits, seal the open segment, and end the thread. Takes nothing afterwards."""
        self._queue.close()
        with self._start_lock:
            thread = self._thread
        if thread is not None:
            thread.join()

    def _start_thread(self) -> None:
        with self._start_lock:
            if self._thread is None:
                # A daemon: a process that forgets to close must still be able to end.
                thread = threading.Thread(target=self._run, name="spool-writer", daemon=True)
                thread.start()
                # Only now: if no thread was to be had, the next delivery tries again.
                self._thread = thread

    def _run(self) -> None:
        while True:
            batch = self._queue.take_all(self._rotation.due_in_s())
            if batch:
                self._commit(batch)
            is_last = not batch and self._queue.is_closed
            self._seal(is_last=is_last)
            if is_last:
                return

    def _commit(self, batch: list[Waiting]) -> None:
        began_at_s = self._began_at_s = self._clock.monotonic_s()
        error = self._try_append([waiting.delivery for waiting in batch])
        self._began_at_s = None
        took_s = self._clock.monotonic_s() - began_at_s
        if took_s > SLOW_APPEND_S:
            log_event(logging.WARNING, "slow_disk", lines=len(batch), seconds=took_s)
        for waiting in batch:
            if error is None:
                waiting.future.set_result(None)
            else:
                waiting.future.set_exception(error)

    def _try_append(self, deliveries: list[Delivery]) -> DeliveryError | None:
        try:
            if not self._rotation.has_space():
                return SpoolFullError("less space is left than spool.min_free_bytes")
            self._rotation.append(deliveries)
        except Exception as error:  # noqa: BLE001 - no 200, and the thread must live
            self._failed_at_s = self._clock.monotonic_s()
            log_event(logging.ERROR, "write_failed", lines=len(deliveries), error=error)
            return SpoolFailedError(f"the spool could not take the event: {error}")
        self._failed_at_s = None
        return None

    def _seal(self, *, is_last: bool) -> None:
        if not is_last and not self._rotation.is_due():
            return
        self._began_at_s = self._clock.monotonic_s()
        try:
            self._rotation.seal()
        except OSError as error:
            # All its lines are durable; recovery will seal it.
            log_event(logging.ERROR, "seal_failed", error=error)
        self._began_at_s = None

    def _start_over(self) -> None:
        self._rotation.abandon()  # closes our copy of the descriptor; the parent keeps the lock
        self._queue = WaitingQueue()
        self._start_lock = threading.Lock()
        self._thread = None
        self._failed_at_s = None
        self._began_at_s = None
