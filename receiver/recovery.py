"""Seal what a process that died has left in open/.

Whoever gets a file's lock is alone with it: the lock of a living writer is never free. Good lines
stay where they are; damaged bytes are copied to quarantine/ before anything is cut, and only a bad
end is cut; whatever follows a bad place stays. It can be killed anywhere and run again.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

from receiver.disk import Disk, write_all
from receiver.log import log_event
from receiver.open_segment import move_to_ready
from receiver.record import encode_seal, segment_seed
from receiver.scan import Damage, SegmentContent, scan_segment
from receiver.segment import Spool, quarantine, segment_name


@dataclass(frozen=True, kw_only=True)
class Recovered:
    """What became of one file: sealed with its lines, or removed because it held none."""

    name: str
    line_count: int
    damages: tuple[Damage, ...]


def recover(spool: Spool, disk: Disk | None = None) -> list[Recovered]:
    """Seal every segment in open/ that nobody writes any more; say what was found.

    A file that cannot be read or sealed now is logged and left for the next time.
    """
    recovered = []
    for path in spool.open_segments():
        try:
            found = _try_recover(spool, path, disk or Disk())
        except OSError as error:
            log_event(logging.ERROR, "recovery_failed", segment=segment_name(path), error=error)
            continue
        if found is not None:
            recovered.append(found)
    return recovered


def _try_recover(spool: Spool, path: Path, disk: Disk) -> Recovered | None:
    try:
        descriptor = disk.open(path)
    except FileNotFoundError:
        return None
    try:
        if not disk.try_lock(descriptor, path):
            return None
        content = scan_segment(segment_name(path), disk.read(path), is_open=True)
        _settle(spool, path, content, descriptor, disk)
    finally:
        with contextlib.suppress(OSError):
            disk.close(descriptor)
    line_count, damages = len(content.lines), tuple(content.damages)
    log_event(
        logging.WARNING, "recovered", segment=content.name, lines=line_count, damages=len(damages)
    )
    return Recovered(name=content.name, line_count=line_count, damages=damages)


def _settle(spool: Spool, path: Path, content: SegmentContent, descriptor: int, disk: Disk) -> None:
    for damage in content.damages:
        data = content.data[damage.offset : damage.end]
        quarantine(spool, content.name, damage, data, disk)
    if not content.is_sealed:
        kept = _cut_bad_end(content, descriptor, disk)
        if not kept:
            disk.remove(path)
            disk.sync_directory(spool.open)
            return
        write_all(disk, descriptor, _seal_after(content, kept))
    # Also if the seal was there: it may not have been synced when its writer died.
    disk.fdatasync(descriptor)
    move_to_ready(disk, spool, content.name)


def _cut_bad_end(content: SegmentContent, descriptor: int, disk: Disk) -> bytes:
    """Cut bad bytes at the very end, where the seal has to go; give what is left."""
    size_bytes = len(content.data)
    for damage in content.damages:
        if damage.size_bytes and damage.end == size_bytes:
            disk.truncate(descriptor, damage.offset)
            return content.data[: damage.offset]
    return content.data


def _seal_after(content: SegmentContent, kept: bytes) -> bytes:
    # The newline of the last good line may be all that was bad.
    missing_newline = b"" if kept.endswith(b"\n") else b"\n"
    sealed = kept + missing_newline
    return missing_newline + encode_seal(
        count=len(content.lines),
        size_bytes=len(sealed),
        sha256=hashlib.sha256(sealed).hexdigest(),
        seed=segment_seed(content.name),
    )
