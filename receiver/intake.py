"""What happens to one delivery: headers, then signature, then spool; counted and logged.

Knows nothing of HTTP servers, so that the Flask view and the front of the server share it. Nothing
here looks into the body: an event that nobody understands yet is an event all the same.
"""

from __future__ import annotations

import concurrent.futures
import logging
from collections.abc import Mapping
from concurrent.futures import Future

from receiver.clock import Clock, format_instant
from receiver.config import Settings
from receiver.counts import ProcessCounts
from receiver.crossing import Crossing
from receiver.disk import Disk
from receiver.errors import (
    BrokenBodyError,
    DeliveryError,
    EncodedBodyError,
    SpoolError,
    SpoolSlowError,
    StaleDeliveryError,
    TooLargeError,
)
from receiver.log import log_event
from receiver.record import Delivery
from receiver.segment import Spool
from receiver.signature import Key, SignedHeaders, check_headers, find_key
from receiver.spool import Writer

# Below the 15 s after which senders of this kind give up.
WAIT_FOR_DISK_S = 10.0
MAX_LENGTH_DIGITS = 18  # Python refuses to read numbers of some thousand digits


def declared_length(headers: Mapping[str, str]) -> int | None:
    """Give the declared length of the body; None if none is declared. Raises BrokenBodyError."""
    text = headers.get("content-length", "")
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= MAX_LENGTH_DIGITS):
        raise BrokenBodyError("the content length is not a number")
    return int(text)


def _refuse_odd_framing(headers: Mapping[str, str]) -> None:
    """Refuse what two servers in a row could read as bodies of two lengths."""
    encoding = headers.get("transfer-encoding", "chunked")
    if encoding.strip().lower() != "chunked":
        raise BrokenBodyError("the transfer encoding is something else than chunked")
    if "transfer-encoding" in headers and "content-length" in headers:
        raise BrokenBodyError("both a length and a transfer encoding are declared")


class Intake:
    """Takes deliveries for one process; `close` must be called when it ends."""

    def __init__(
        self,
        settings: Settings,
        *,
        disk: Disk | None = None,
        clock: Clock | None = None,
        wait_for_disk_s: float = WAIT_FOR_DISK_S,
        needs_spool: bool = True,
    ) -> None:
        """Prepare keys, spool and counts. Raises ConfigurationError.

        A spool that cannot be used raises SpoolError or OSError, unless `needs_spool` is false:
        then it is logged, and deliveries are answered 503 until it can be used.
        """
        self._settings = settings.receiver
        self._wait_s = wait_for_disk_s
        self._keys = settings.keys()
        self._clock = clock or Clock()
        spool = Spool(settings.spool.path)
        try:
            spool.create()
        except (SpoolError, OSError) as error:
            if needs_spool:
                raise
            log_event(logging.ERROR, "spool_not_ready", error=error)
        self._writer = Writer(spool, settings.spool, disk=disk, clock=self._clock)
        self._counts = ProcessCounts(spool, self._clock)
        self._last_key_name: str | None = None

    @property
    def max_body_bytes(self) -> int:
        """The longest body that is taken."""
        return self._settings.max_body_bytes

    def check_head(self, headers: Mapping[str, str]) -> SignedHeaders:
        """Check what can be checked before the body is read; names in lower case.

        Raises a DeliveryError.
        """
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise EncodedBodyError("the body is compressed")
        _refuse_odd_framing(headers)
        self.check_size(declared_length(headers) or 0)
        now_s = int(self._clock.now().timestamp())
        return check_headers(headers, now_s=now_s, tolerance_s=self._settings.tolerance_s)

    def check_size(self, size_bytes: int) -> None:
        """Refuse a body that is longer than the limit."""
        if size_bytes > self.max_body_bytes:
            raise TooLargeError(f"the body is longer than {self.max_body_bytes} bytes")

    def take(self, headers: SignedHeaders, body: bytes, *, wake: bool = True) -> Future[None]:
        """Check the signature and hand the event to the writer; give what tells when it is durable.

        Without `wake`, the writer turns to it when `wake` is called.

        Raises a DeliveryError.
        """
        match = find_key(headers, body, self._keys)
        delivery = Delivery(
            webhook_id=headers.webhook_id,
            webhook_timestamp=headers.webhook_timestamp,
            # Only the entry that our key has proven: nothing unsigned is stored.
            webhook_signature=match.signature,
            received_at=format_instant(self._clock.now()),
            body=body,
        )
        future = self._writer.submit(delivery, wake=wake)
        future.add_done_callback(lambda done: self._count_accepted(done, match.key))
        return future

    def wake(self) -> None:
        """Let the writer turn to what was taken without waking it."""
        self._writer.wake()

    def wait(self, future: Future[None]) -> None:
        """Block until the event is durable. Raises a DeliveryError."""
        try:
            future.result(self._wait_s)
        except (concurrent.futures.TimeoutError, concurrent.futures.CancelledError):
            raise self._give_up(future) from None

    async def wait_async(self, future: Future[None], crossing: Crossing) -> None:
        """Do as `wait` does, without holding the event loop."""
        try:
            await crossing.wait(future, self._wait_s)
        except TimeoutError:
            raise self._give_up(future) from None

    def count_refused(self, error: DeliveryError, webhook_id: str) -> None:
        """Count and log a request that was not answered 200."""
        age_s = error.age_s if isinstance(error, StaleDeliveryError) else None
        self._counts.add_refused(error.reason, age_s)
        log_event(
            logging.WARNING,
            "refused",
            status=error.status,
            reason=error.reason,
            id=webhook_id,
            detail=error,
        )

    def problem(self) -> str | None:
        """Say why no delivery could be kept now; None if it could."""
        return self._writer.problem()

    def close(self) -> None:
        """Write what waits, seal, and write the counts."""
        self._writer.close()
        self._counts.close()

    def _count_accepted(self, done: Future[None], key: Key) -> None:
        if done.cancelled() or done.exception() is not None:
            return
        self._counts.add_accepted(key.name)
        if key.name != self._last_key_name:
            self._last_key_name = key.name
            log_event(logging.INFO, "key_matched", key=key.name)

    def _give_up(self, future: Future[None]) -> DeliveryError:
        # If the writer has it already, the event may become durable yet. The sender comes again
        # with the same id, and one row is all that the warehouse will hold.
        future.cancel()
        return SpoolSlowError("the disk did not answer in time")
