"""The calls to the operating system on which a 200 rests, in one object that a test can break.

Each does one thing and lets its OSError through.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


class Disk:
    """The real disk."""

    def create(self, path: Path) -> int:
        """Create a file that nobody else has, for appending; give its descriptor."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        return os.open(path, flags, 0o600)

    def open(self, path: Path) -> int:
        """Open an existing file for reading and appending; give its descriptor."""
        return os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)

    def try_lock(self, descriptor: int, path: Path) -> bool:
        """Take the lock of an open file, if it is free and the path still names this very file."""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Between our opening and our lock, its last owner may have moved or removed it.
            return os.path.samestat(os.fstat(descriptor), path.lstat())
        except (BlockingIOError, FileNotFoundError):
            return False

    def read(self, path: Path) -> bytes:
        """Read a whole file."""
        return path.read_bytes()

    def write(self, descriptor: int, data: memoryview) -> int:
        """Append bytes; give how many were taken, which may be fewer."""
        return os.write(descriptor, data)

    def fdatasync(self, descriptor: int) -> None:
        """Make a file's bytes and its size durable."""
        os.fdatasync(descriptor)

    def fsync(self, descriptor: int) -> None:
        """Make a file durable with all its metadata."""
        os.fsync(descriptor)

    def sync_directory(self, path: Path) -> None:
        """Make the names in a directory durable."""
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def truncate(self, descriptor: int, size_bytes: int) -> None:
        """Cut a file."""
        os.ftruncate(descriptor, size_bytes)

    def rename(self, source: Path, target: Path) -> None:
        """Move a file within the spool."""
        source.rename(target)

    def remove(self, path: Path) -> None:
        """Remove a file."""
        path.unlink()

    def close(self, descriptor: int) -> None:
        """Give a descriptor back, and with it its lock."""
        os.close(descriptor)

    def free_bytes(self, path: Path) -> int:
        """Give the space that is left for us on the file system of a path."""
        status = os.statvfs(path)
        return status.f_bavail * status.f_frsize


def write_all(disk: Disk, descriptor: int, data: bytes) -> None:
    """Append all bytes, however many pieces the system makes of them. Raises OSError."""
    rest = memoryview(data)
    while rest:
        rest = rest[disk.write(descriptor, rest) :]
