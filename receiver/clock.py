"""The time, in one place that a test can replace."""

from __future__ import annotations

import time
from datetime import UTC, datetime


class Clock:
    """The clocks of this machine."""

    def now(self) -> datetime:
        """Give the wall time in UTC. It may jump, so it only dates and judges; it never waits."""
        return datetime.now(UTC)

    def monotonic_s(self) -> float:
        """Give seconds since some moment; never jumps, so ages and deadlines count on it."""
        return time.monotonic()


def format_instant(instant: datetime) -> str:
    """Write an instant in UTC as it stands in lines: microseconds, and Z."""
    return instant.isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"
