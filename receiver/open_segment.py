"""One file in open/, from its creation to its seal.

Two steps make bytes durable, always in this order: the file, then the directory that names it. A
rename of a file that was not synced leaves an empty one after a power cut.

After any OSError the object is of no more use, and its owner must let it go: a second sync after
a failed one says success and means nothing. What is in the file is left to recovery.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence

from receiver.disk import Disk, write_all
from receiver.hashing import update
from receiver.record import Delivery, encode_line, encode_seal, segment_seed
from receiver.segment import SUFFIX, Spool


class TakenError(OSError):
    """A recovery took the new file for a dead one; another name will do."""


class OpenSegment:
    """A segment that one thread of one process writes."""

    def __init__(self, spool: Spool, name: str, disk: Disk) -> None:
        """Create the file, lock it, and make its name durable. Raises OSError."""
        self.name = name
        self.count = 0
        self.size_bytes = 0
        self._spool = spool
        self._disk = disk
        self._seed = segment_seed(name)
        self._digest = hashlib.sha256()
        self._path = spool.open / (name + SUFFIX)
        self._descriptor = disk.create(self._path)
        try:
            self._make_ours()
        except TakenError:
            self.abandon()
            raise
        except OSError:
            self.give_up()
            raise

    def append(self, deliveries: Sequence[Delivery]) -> None:
        """Write all deliveries as lines and return when they are durable. Raises OSError."""
        lines = b"".join(
            encode_line(delivery, n=n, seed=self._seed)
            for n, delivery in enumerate(deliveries, self.count)
        )
        write_all(self._disk, self._descriptor, lines)
        self._disk.fdatasync(self._descriptor)
        update(self._digest, lines)
        self.count += len(deliveries)
        self.size_bytes += len(lines)

    def seal(self) -> None:
        """Make the segment immutable and hand it to the loaders; remove it if it is empty."""
        if self.count == 0:
            self._disk.remove(self._path)
            self._disk.sync_directory(self._spool.open)
        else:
            seal = encode_seal(
                count=self.count,
                size_bytes=self.size_bytes,
                sha256=self._digest.hexdigest(),
                seed=self._seed,
            )
            write_all(self._disk, self._descriptor, seal)
            self._disk.fdatasync(self._descriptor)
            move_to_ready(self._disk, self._spool, self.name)
        self.abandon()

    def abandon(self) -> None:
        """Let go of the file and its lock; whoever comes next may recover it."""
        with contextlib.suppress(OSError):
            self._disk.close(self._descriptor)

    def give_up(self) -> None:
        """Abandon after a failure; remove what is empty, or every refusal would leave a file."""
        with contextlib.suppress(OSError):
            if self.count == 0 and not self._disk.read(self._path):
                self._disk.remove(self._path)
        self.abandon()

    def _make_ours(self) -> None:
        # A recovery may have seen the file before it was locked, and removed it as empty.
        if not self._disk.try_lock(self._descriptor, self._path):
            raise TakenError(f"somebody else took {self._path} before it was locked")
        self._disk.fsync(self._descriptor)
        self._disk.sync_directory(self._spool.open)


def move_to_ready(disk: Disk, spool: Spool, name: str) -> None:
    """Rename a synced file from open/ to ready/, durably. Raises OSError."""
    file_name = name + SUFFIX
    disk.rename(spool.open / file_name, spool.ready / file_name)
    disk.sync_directory(spool.ready)
    disk.sync_directory(spool.open)
