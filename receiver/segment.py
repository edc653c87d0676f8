"""The spool's directories and the files in them: list, read, lock, archive, quarantine.

A segment's name never changes; the directory in which it lies is its state:

    open/        being written, by the process that holds its lock (flock)
    ready/       sealed: immutable, may be taken by a loader
    loaded/      its rows are committed; kept for the retention time
    quarantine/  damaged bytes, one file a damage, with the reason in a JSON file beside each
    counts/      what each process accepted and refused

Writing and sealing are in `spool`, the bytes of a segment in `scan` and `record`.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from receiver.disk import Disk, write_all
from receiver.errors import BusyError, SpoolError
from receiver.scan import Damage, LineSpan, SegmentContent, scan_segment

__all__ = [
    "Damage",
    "LineSpan",
    "SegmentContent",
    "Spool",
    "load_lock",
    "mark_loaded",
    "quarantine",
    "read_segment",
    "segment_file_names",
    "segment_name",
]

SUFFIX = ".jsonl"
# Wider than the names that we give: a good line must not be passed over for its file's odd date.
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.jsonl")


class Spool:
    """The directory that holds all segments; knows where each state lives."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.open = self.path / "open"
        self.ready = self.path / "ready"
        self.loaded = self.path / "loaded"
        self.quarantine = self.path / "quarantine"
        self.counts = self.path / "counts"

    def __repr__(self) -> str:
        return f"Spool({str(self.path)!r})"

    @property
    def directories(self) -> tuple[Path, ...]:
        """The spool itself, then each state's directory."""
        return (self.path, self.open, self.ready, self.loaded, self.quarantine, self.counts)

    def create(self) -> None:
        """Make what is missing, with mode 0700, durably. Raises SpoolError or OSError."""
        for directory in self.directories:
            _make_directory(directory)
            _refuse_unsafe(directory)
            _refuse_unwritable(directory)
        _sync_parent(self.path)
        Disk().sync_directory(self.path)

    def open_segments(self) -> list[Path]:
        """List the segments being written, or left by a process that died."""
        return _list_segments(self.open)

    def ready_segments(self) -> list[Path]:
        """List the sealed segments that wait for a load, oldest name first."""
        return _list_segments(self.ready)

    def loaded_segments(self) -> list[Path]:
        """List the segments whose rows are committed, oldest name first."""
        return _list_segments(self.loaded)


def segment_name(path: Path) -> str:
    """Give the name that seeds a segment's checksums."""
    return path.name.removesuffix(SUFFIX)


def read_segment(path: Path, *, is_open: bool = False) -> SegmentContent:
    """Read one segment with all that is good and all that is damaged in it.

    Raises OSError if the file cannot be read, never for what it holds.
    """
    return scan_segment(segment_name(path), path.read_bytes(), is_open=is_open)


def mark_loaded(paths: Iterable[Path], disk: Disk | None = None) -> None:
    """Move segments from ready/ to loaded/, durably. One that is moved already is passed over."""
    disk = disk or Disk()
    for path in paths:
        loaded = path.parent.parent / "loaded"
        with contextlib.suppress(FileNotFoundError):
            disk.rename(path, loaded / path.name)
        # Target first: a cut in between may show a segment twice, but never not at all.
        disk.sync_directory(loaded)
        disk.sync_directory(path.parent)


def quarantine(
    spool: Spool, name: str, damage: Damage, data: bytes, disk: Disk | None = None
) -> Path:
    """Keep the damaged bytes of a segment and why, durably; give the path of the bytes.

    `data` are the bytes of the damage alone. Doing it again changes nothing.
    """
    disk = disk or Disk()
    path = _place_in_quarantine(disk, spool, f"{name}-{damage.offset:012d}", data)
    reason = {
        "segment": name,
        "offset": damage.offset,
        "size_bytes": damage.size_bytes,
        "reason": damage.reason,
    }
    _write_durably(disk, path, data)
    _write_durably(disk, path.with_suffix(".json"), json.dumps(reason).encode() + b"\n")
    disk.sync_directory(spool.quarantine)
    return path


@contextlib.contextmanager
def load_lock(spool: Spool) -> Iterator[None]:
    """Hold the right to load from this spool. Raises BusyError at once if somebody else has it."""
    path = spool.path / "load.lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        _lock(descriptor, path)
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        # The file stays: to unlink a lock file lets two processes hold two locks of one name.
        os.close(descriptor)


def _place_in_quarantine(disk: Disk, spool: Spool, stem: str, data: bytes) -> Path:
    """Give the file that holds these bytes, or may: other bytes from the same place stay.

    A recovery that dies while it writes the seal leaves half of it where it has cut a bad end.
    """
    path = spool.quarantine / f"{stem}.bin"
    again = 1
    with contextlib.suppress(FileNotFoundError):
        while disk.read(path) != data:
            again += 1
            path = spool.quarantine / f"{stem}-{again}.bin"
    return path


def _lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip() or "unknown"
        raise BusyError(
            f"another load is running (process {holder} holds {path}); "
            "wait until it has ended, then load again"
        ) from error


def segment_file_names(directory: Path) -> list[str]:
    """List the names of a directory's segments, in no order; files of other names are not ours.

    Cheap for many files: one pass, and no object for each.
    """
    try:
        with os.scandir(directory) as entries:
            return [entry.name for entry in entries if _FILE_NAME.fullmatch(entry.name)]
    except FileNotFoundError:
        return []


def _list_segments(directory: Path) -> list[Path]:
    return [directory / name for name in sorted(segment_file_names(directory))]


def _make_directory(path: Path) -> None:
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        return
    except OSError as error:
        raise SpoolError(
            f"cannot create the directory {path}: {error.strerror}; "
            "create its parent, or set spool.path (SPOOL__PATH) to a directory on a local disk"
        ) from error


def _refuse_unsafe(path: Path) -> None:
    """Refuse what others own or can write to; take away what else others may do."""
    status = path.lstat()
    mode = status.st_mode
    if not stat.S_ISDIR(mode):
        raise SpoolError(
            f"{path} is not a directory but a link or a file; "
            "set spool.path (SPOOL__PATH) to a directory of its own"
        )
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise SpoolError(
            f"other users can write to {path} (mode {stat.S_IMODE(mode):04o}); "
            f"run: chmod 700 {path}"
        )
    if status.st_uid != os.geteuid():
        raise SpoolError(
            f"{path} belongs to user {status.st_uid}, and this process is user {os.geteuid()}; "
            f"run it as the owner, or run: chown {os.geteuid()} {path}"
        )
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        path.chmod(0o700)


def _refuse_unwritable(path: Path) -> None:
    if os.statvfs(path).f_flag & os.ST_RDONLY:
        raise SpoolError(
            f"{path} is on a file system that is mounted read-only; mount it writable, "
            "or set spool.path (SPOOL__PATH) to a directory on another local disk"
        )
    if not os.access(path, os.W_OK | os.X_OK):
        raise SpoolError(f"this process may not make files in {path}; run: chmod 700 {path}")


def _sync_parent(path: Path) -> None:
    try:
        Disk().sync_directory(path.parent)
    except PermissionError as error:
        raise SpoolError(
            f"cannot open {path.absolute().parent} to make the name {path.name} durable: "
            f"{error.strerror}; let this user read it, or set spool.path (SPOOL__PATH) to a "
            "directory in one that it can read"
        ) from error


def _write_durably(disk: Disk, path: Path, data: bytes) -> None:
    """Write a whole file under its name, or nothing."""
    temporary = path.with_name(path.name + ".tmp")
    with contextlib.suppress(FileNotFoundError):
        disk.remove(temporary)  # what a process that died here has left
    descriptor = disk.create(temporary)
    try:
        write_all(disk, descriptor, data)
        disk.fsync(descriptor)
    finally:
        disk.close(descriptor)
    disk.rename(temporary, path)
