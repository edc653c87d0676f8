"""Count what was accepted and refused, where `status` and `load` can see it.

Each process keeps its own counts and writes them to a file of its own in the spool's counts/, at
most once a second and at the end; readers add up all files, those of dead processes too. The counts
are for people: they are not synced, and an event never depends on them.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import threading
from collections import Counter
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path

from receiver.clock import Clock, format_instant
from receiver.fork import call_after_fork
from receiver.log import log_event
from receiver.segment import Spool

WRITE_EVERY_S = 1.0
_TICK = timedelta(microseconds=1)


@dataclass(kw_only=True)
class Counts:
    """What was counted, by one process or by all; instants are UTC texts that sort by time.

    refused: reason -> count, also of what was answered 503. matched: key name -> count, and when
    last; a key whose last match stays behind is not used any more.
    clock_skew_s: age of the last delivery that was refused as stale; negative: from the future.
    """

    accepted: int = 0
    last_accepted_at: str | None = None
    refused: dict[str, int] = field(default_factory=dict)
    last_refused_at: dict[str, str] = field(default_factory=dict)
    matched: dict[str, int] = field(default_factory=dict)
    last_matched_at: dict[str, str] = field(default_factory=dict)
    clock_skew_s: int | None = None

    def add(self, other: Counts) -> None:
        """Add what another process has counted."""
        if other.clock_skew_s is not None and _is_later(other, self, "stale"):
            self.clock_skew_s = other.clock_skew_s
        self.accepted += other.accepted
        self.last_accepted_at = (
            max(self.last_accepted_at or "", other.last_accepted_at or "") or None
        )
        self.refused = dict(Counter(self.refused) + Counter(other.refused))
        self.matched = dict(Counter(self.matched) + Counter(other.matched))
        _keep_latest(self.last_refused_at, other.last_refused_at)
        _keep_latest(self.last_matched_at, other.last_matched_at)


class ProcessCounts:
    """The counts of this process; may be called from any thread."""

    def __init__(self, spool: Spool, clock: Clock | None = None) -> None:
        self._spool = spool
        self._clock = clock or Clock()
        self._start_over()
        call_after_fork(self._start_over)

    def add_accepted(self, key_name: str) -> None:
        """Count a delivery that is durable, and the key that signed it."""
        with self._lock:
            counts = self._counts
            counts.accepted += 1
            counts.last_accepted_at = self._stamp()
            counts.matched[key_name] = counts.matched.get(key_name, 0) + 1
            counts.last_matched_at[key_name] = counts.last_accepted_at
            self._write_soon()

    def add_refused(self, reason: str, clock_skew_s: int | None = None) -> None:
        """Count a request that was not answered 200."""
        with self._lock:
            counts = self._counts
            counts.refused[reason] = counts.refused.get(reason, 0) + 1
            counts.last_refused_at[reason] = self._stamp()
            if clock_skew_s is not None:
                counts.clock_skew_s = clock_skew_s
            self._write_soon()

    def close(self) -> None:
        """Write what has not been written yet."""
        with self._lock:
            timer, has_changed = self._timer, self._has_changed
        if timer is not None:
            timer.cancel()
        if has_changed:
            self._write()

    def _start_over(self) -> None:
        # A name of its own: the number of a process may come again.
        self._path = self._spool.counts / f"{os.getpid()}-{secrets.token_hex(6)}.json"
        self._counts = Counts()
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None
        self._has_changed = False

    def _stamp(self) -> str:
        """Give the instant of what happens now, after all that has happened before.

        A clock that went back has stamped things later than now; which came last must still show.
        """
        now = self._clock.now()
        instant, just_before = format_instant(now), format_instant(now - _TICK)
        counts = self._counts
        if counts.last_accepted_at is not None and counts.last_accepted_at > instant:
            counts.last_accepted_at = just_before
        for reason, refused_at in counts.last_refused_at.items():
            if refused_at > instant:
                counts.last_refused_at[reason] = just_before
        return instant

    def _write_soon(self) -> None:
        self._has_changed = True
        if self._timer is not None:
            return
        timer = threading.Timer(WRITE_EVERY_S, self._write)
        timer.daemon = True
        try:
            timer.start()
        except RuntimeError as error:
            # No thread is to be had now: the next change tries again, and so does the end.
            log_event(logging.WARNING, "counts_not_written", error=error)
            return
        self._timer = timer

    def _write(self) -> None:
        with self._lock:
            self._timer, self._has_changed = None, False
            text = json.dumps(asdict(self._counts))
        try:
            _replace(self._path, text)
        except OSError as error:
            # Nothing rests on a count; the next change tries again.
            log_event(logging.WARNING, "counts_not_written", error=error)


def read_counts(spool: Spool) -> Counts:
    """Add up the counts of all processes, living and dead; an unreadable file adds nothing."""
    total = Counts()
    with contextlib.suppress(FileNotFoundError):
        for path in sorted(spool.counts.iterdir()):
            if path.suffix == ".json":
                total.add(_read(path))
    return total


def _read(path: Path) -> Counts:
    try:
        return Counts(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        log_event(logging.WARNING, "counts_not_read", file=path.name, error=error)
        return Counts()


def _replace(path: Path, text: str) -> None:
    temporary = path.with_suffix(".tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    temporary.rename(path)


def _keep_latest(instants: dict[str, str], others: dict[str, str]) -> None:
    for name, instant in others.items():
        instants[name] = max(instant, instants.get(name, ""))


def _is_later(one: Counts, other: Counts, reason: str) -> bool:
    return one.last_refused_at.get(reason, "") >= other.last_refused_at.get(reason, "")
