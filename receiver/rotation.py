"""Which file the next lines go to: open one, seal it by size or age, drop it on failure.

For one thread. The age counts on the monotonic clock. Names count on the wall clock, but never go
backwards when that does, so that names sort in the order in which segments were begun.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from receiver.clock import Clock
from receiver.config import SpoolSettings
from receiver.disk import Disk
from receiver.open_segment import OpenSegment, TakenError
from receiver.record import Delivery
from receiver.segment import Spool, segment_file_names

_STAMP = "%Y%m%dT%H%M%S.%f"
_NAME = re.compile(r"([0-9]{8}T[0-9]{6}\.[0-9]{6})Z-")
_FIRST = datetime(1970, 1, 1, tzinfo=UTC)
_TICK = timedelta(microseconds=1)
_ATTEMPTS = 3  # to create a file, if a recovery takes it for a dead one


class Rotation:
    """The segment that is open now, and when it has to be sealed."""

    def __init__(self, spool: Spool, settings: SpoolSettings, disk: Disk, clock: Clock) -> None:
        self._spool = spool
        self._settings = settings
        self._disk = disk
        self._clock = clock
        self._names = SegmentNames(spool, clock)
        self._segment: OpenSegment | None = None
        self._opened_at_s = 0.0

    def append(self, deliveries: Sequence[Delivery]) -> None:
        """Return when all deliveries are durable; on an OSError none of them is acknowledged."""
        try:
            segment = self._segment or self._open()
            segment.append(deliveries)
        except BaseException:
            failed, self._segment = self._segment, None
            if failed is not None:
                failed.give_up()
            raise

    def is_due(self) -> bool:
        """Say whether the open segment is large or old enough to be sealed."""
        return self.due_in_s() == 0.0

    def due_in_s(self) -> float | None:
        """Give the time until the open segment has to be sealed; None if none is open."""
        if self._segment is None:
            return None
        if self._segment.size_bytes >= self._settings.segment_max_bytes:
            return 0.0
        age_s = self._clock.monotonic_s() - self._opened_at_s
        return max(0.0, self._settings.segment_max_age_s - age_s)

    def seal(self) -> None:
        """Seal the open segment, if there is one. On an OSError it is left to recovery."""
        segment, self._segment = self._segment, None
        if segment is None:
            return
        try:
            segment.seal()
        except OSError:
            segment.abandon()
            raise

    def abandon(self) -> None:
        """Never write to the open segment again."""
        segment, self._segment = self._segment, None
        if segment is not None:
            segment.abandon()

    def has_space(self) -> bool:
        """Say whether the file system has more space than the floor. Raises OSError."""
        return self._disk.free_bytes(self._spool.open) >= self._settings.min_free_bytes

    def _open(self) -> OpenSegment:
        self._segment = self._create()
        self._opened_at_s = self._clock.monotonic_s()
        return self._segment

    def _create(self) -> OpenSegment:
        for _ in range(_ATTEMPTS - 1):
            with contextlib.suppress(TakenError):
                return OpenSegment(self._spool, self._names.next(), self._disk)
        return OpenSegment(self._spool, self._names.next(), self._disk)


class SegmentNames:
    """Names of new segments: time, process, chance; never lower than what the spool held."""

    def __init__(self, spool: Spool, clock: Clock) -> None:
        """Look at the spool now, so that the first delivery does not wait for it."""
        self._spool = spool
        self._clock = clock
        self._last: datetime | None = None
        # A spool that cannot be read now may be so when the first name is needed.
        with contextlib.suppress(OSError):
            self._last = self._newest_in_spool()

    def next(self) -> str:
        """Give the next name. Raises OSError if the spool could not be read until now."""
        last = self._last or self._newest_in_spool()
        self._last = max(self._clock.now(), last + _TICK)
        return f"{self._last.strftime(_STAMP)}Z-{os.getpid()}-{secrets.token_hex(3)}"

    def _newest_in_spool(self) -> datetime:
        spool = self._spool
        newest, newest_at = "", _FIRST
        for directory in (spool.open, spool.ready, spool.loaded):
            for name in segment_file_names(directory):
                # Names sort by their stamps, so that few of many have to be read as an instant.
                if name > newest and (instant := _try_instant(name)) is not None:
                    newest, newest_at = name, instant
        return newest_at


def _try_instant(name: str) -> datetime | None:
    """Give the instant in a segment's name; None if there is no such instant, or none after it."""
    match = _NAME.match(name)
    if match is None:
        return None
    try:
        instant = datetime.strptime(match[1], _STAMP).replace(tzinfo=UTC)
        return (instant + _TICK) - _TICK  # raises for the last instant of all
    except (ValueError, OverflowError):
        return None
