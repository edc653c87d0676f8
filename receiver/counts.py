"""Count what was accepted and refused, where `status` and `load` can see it.

Each process keeps its own counts and writes them to a file of its own in the spool's counts/, at
most once a second and at the end; readers add up all files, those of dead processes too. A process
that starts folds the files of dead ones into one. The counts are for people: they are
not synced, and an event never depends on them.

A process holds the lock of its file while it counts, so that nobody folds what it will write again.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import secrets
import threading
from collections import Counter
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

from receiver.clock import Clock, format_instant
from receiver.disk import Disk, write_all
from receiver.fork import call_after_fork
from receiver.log import log_event
from receiver.segment import Spool

WRITE_EVERY_S = 1.0
SUM_NAME = "folded.json"
_READ_ATTEMPTS = 5  # a fold may take files away while they are read
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
        self._descriptor: int | None = None  # holds the lock of our file
        self._start_over()
        try:
            fold_counts(spool)
        except OSError as error:
            log_event(logging.WARNING, "counts_not_folded", error=error)
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
        """Write what has not been written yet; what is counted later goes to another file."""
        with self._lock:
            timer, has_changed = self._timer, self._has_changed
        if timer is not None:
            timer.cancel()
        if has_changed:
            self._write()
        with self._write_lock, self._lock:
            if not self._has_changed:
                self._begin()

    def _start_over(self) -> None:
        self._lock = threading.Lock()
        self._write_lock = threading.Lock()  # taken first; never held while something is counted
        self._timer: threading.Timer | None = None
        self._begin()

    def _begin(self) -> None:
        """Count from nothing, in a new file; from now on the last one may be folded."""
        # A name of its own: the number of a process may come again.
        self._path = self._spool.counts / f"{os.getpid()}-{secrets.token_hex(6)}.json"
        self._counts = Counts()
        self._has_changed = False
        self._hold(None)

    def _hold(self, descriptor: int | None) -> None:
        held, self._descriptor = self._descriptor, descriptor
        if held is not None:
            with contextlib.suppress(OSError):
                os.close(held)

    def _stamp(self) -> str:
        """Give the instant of what happens now, after all that has happened before.

        A clock that went back has stamped things later than now; which came last must still show.
        """
        now = self._clock.now()
        instant, counts = format_instant(now), self._counts
        stamps = [counts.last_accepted_at or "", *counts.last_refused_at.values()]
        if max(stamps) <= instant:
            return instant
        just_before = format_instant(now - _TICK)
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
        with self._write_lock:
            with self._lock:
                self._timer, self._has_changed = None, False
                text = json.dumps(asdict(self._counts))
            try:
                self._hold(_replace(self._path, text))
            except OSError as error:
                # Nothing rests on a count; the next change tries again.
                log_event(logging.WARNING, "counts_not_written", error=error)


def read_counts(spool: Spool) -> Counts:
    """Add up the counts of all processes, living and dead; an unreadable file adds nothing."""
    for _ in range(_READ_ATTEMPTS):
        total, is_whole = _add_up(spool.counts)
        if is_whole:
            break
    return total


def fold_counts(spool: Spool) -> None:
    """Add up the files of dead processes in one, unless another process is at it. Raises OSError.

    The new sum names the files that it holds before they are removed, and readers pass those over:
    whenever a fold dies, nothing is lost and nothing counted twice.
    """
    if not _file_names(spool.counts):
        return
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(spool.path / "counts.lock", flags, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _fold(spool.counts)
    except BlockingIOError:
        return
    finally:
        os.close(descriptor)


class _CountFile(NamedTuple):
    """What a file holds; `held` are the names of the files that are in a sum already."""

    counts: Counts
    held: list[str]


def _add_up(directory: Path) -> tuple[Counts, bool]:
    """Give the sum, and whether no file went away meanwhile, whose counts would be missing."""
    # The names first: what a fold takes away after that is missed, and looked for again.
    names = _file_names(directory)
    total, held = _try_read(directory / SUM_NAME) or _CountFile(Counts(), [])
    found = [_try_read(directory / name) for name in names if name not in held]
    for file in found:
        if file is not None:
            total.add(file.counts)
    return total, None not in found


def _fold(directory: Path) -> None:
    total, held = _try_read(directory / SUM_NAME) or _CountFile(Counts(), [])
    names = _file_names(directory)
    _remove(directory, [name for name in names if name in held])  # the last fold has died there
    dead = [name for name in names if name not in held and _is_dead(directory / name)]
    for name in dead:
        file = _try_read(directory / name)
        if file is not None:
            total.add(file.counts)
    if dead:
        os.close(_replace(directory / SUM_NAME, json.dumps(asdict(total) | {"held": dead})))
        _remove(directory, dead)


def _file_names(directory: Path) -> list[str]:
    """List the files of single processes."""
    try:
        with os.scandir(directory) as entries:
            names = [entry.name for entry in entries if entry.name.endswith(".json")]
    except FileNotFoundError:
        return []
    return sorted(name for name in names if name != SUM_NAME)


def _is_dead(path: Path) -> bool:
    """Say whether nobody will write this file again: then nobody holds its lock."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        # A living process may have put a new file in place of what we have opened.
        return Disk().try_lock(descriptor, path)
    finally:
        os.close(descriptor)


def _remove(directory: Path, names: list[str]) -> None:
    for name in names:
        (directory / name).unlink(missing_ok=True)


def _try_read(path: Path) -> _CountFile | None:
    """Read a file; None if there is none. What cannot be understood adds nothing."""
    counts = Counts()
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        held = document.pop("held", [])
        counts.add(Counts(**document))
        return _CountFile(counts, held)
    except FileNotFoundError:
        return None
    except OSError as error:
        log_event(logging.WARNING, "counts_not_read", file=path.name, error=error)
    except (ValueError, TypeError, AttributeError) as error:
        log_event(logging.WARNING, "counts_not_read", file=path.name, error=error)
        # Out of the way, or every reading would tell of it again.
        with contextlib.suppress(OSError):
            path.rename(path.with_suffix(".torn"))
    return _CountFile(Counts(), [])


def _replace(path: Path, text: str) -> int:
    """Write a whole file in place of the last one; give its descriptor, which holds its lock."""
    temporary = path.with_suffix(".tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        write_all(Disk(), descriptor, text.encode("utf-8"))
        temporary.rename(path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _keep_latest(instants: dict[str, str], others: dict[str, str]) -> None:
    for name, instant in others.items():
        instants[name] = max(instant, instants.get(name, ""))


def _is_later(one: Counts, other: Counts, reason: str) -> bool:
    return one.last_refused_at.get(reason, "") >= other.last_refused_at.get(reason, "")
