"""A file system in memory that keeps after a power cut what POSIX promises, and no more.

What it may do to whatever was not synced:

- Of each write that no sync has followed, any subset of its 512-byte pieces is there, one of them
  torn at any byte; where a later piece is there and an earlier one is not, there are zeros. The
  size may have grown without the bytes. A truncation may or may not have happened.
- A creation, a rename or a removal whose directory was not synced may or may not have happened, in
  any subset. A rename between two directories shows the old name, the new one or both, but never
  neither: every journalling file system keeps a rename together.
- After a failed sync of a file its bytes can still be read, but later syncs say success without
  writing them, as on ext4.

What it takes for granted: a piece is written as a whole or up to a byte, so bytes beside those
written never change; and a failed sync of a directory leaves its names to the next sync.

A `Machine` is the disk, its cache and the locks. A `ModelDisk` is what one process sees of it. A
power cut gives a new machine, on which nothing is open; the old one may be cut again.
"""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path
from random import Random

from receiver.disk import Disk
from receiver.segment import SUFFIX, Spool

PIECE_BYTES = 512


class KilledError(BaseException):
    """The process has died in this call."""


class Fate(Enum):
    """Whether a change outlives a power cut."""

    OPEN = auto()  # perhaps; the next sync makes it sure
    LOST = auto()  # perhaps; a sync has failed, and the next one will not try again
    SURE = auto()


@dataclass(slots=True)
class Change:
    """A write at an offset, or a cut there if it has no bytes."""

    offset: int
    data: bytes | None
    fate: Fate = Fate.OPEN


class File:
    """The bytes of a file as processes see them, and what of them is on the disk."""

    def __init__(self, data: bytes = b"", *, had_failed_sync: bool = False) -> None:
        self.seen = data
        self.had_failed_sync = had_failed_sync
        self._base = data
        self._changes: list[Change] = []

    def append(self, data: bytes) -> None:
        self._changes.append(Change(len(self.seen), data))
        self.seen += data

    def truncate(self, size_bytes: int) -> None:
        self._changes.append(Change(size_bytes, None))
        self.seen = self.seen[:size_bytes]

    def sync(self) -> None:
        for change in self._changes:
            if change.fate is Fate.OPEN:
                change.fate = Fate.SURE
        if all(change.fate is Fate.SURE for change in self._changes):
            self._base, self._changes = self.seen, []

    def fail_sync(self) -> None:
        self.had_failed_sync = True
        for change in self._changes:
            if change.fate is Fate.OPEN:
                change.fate = Fate.LOST

    def after_cut(self, chance: Random) -> File:
        """Give the file as a power cut may leave it."""
        return File(self._bytes_after_cut(chance), had_failed_sync=self.had_failed_sync)

    def _bytes_after_cut(self, chance: Random) -> bytes:
        if not self._changes:
            return self._base
        image = bytearray(self._base)
        taste = chance.choice((_keep_nothing, _keep_all, _keep_start, _keep_pieces, _keep_pieces))
        for change in self._changes:
            if change.data is None:
                if change.fate is Fate.SURE or chance.random() < 0.5:
                    del image[change.offset :]
            elif change.fate is Fate.SURE:
                _put(image, change.offset, change.data)
            else:
                taste(image, change.offset, change.data, chance)
        return bytes(image)


def _put(image: bytearray, offset: int, data: bytes) -> None:
    """Write bytes, with zeros before them where there is nothing."""
    image.extend(bytes(max(0, offset - len(image))))
    image[offset : offset + len(data)] = data


def _keep_nothing(image: bytearray, offset: int, data: bytes, chance: Random) -> None:
    pass


def _keep_all(image: bytearray, offset: int, data: bytes, chance: Random) -> None:
    _put(image, offset, data)


def _keep_start(image: bytearray, offset: int, data: bytes, chance: Random) -> None:
    """Tear the write at any byte; perhaps the size has grown nevertheless."""
    _put(image, offset, data[: chance.randrange(len(data) + 1)])
    if chance.random() < 0.3:
        _put(image, offset + len(data), b"")


def _keep_pieces(image: bytearray, offset: int, data: bytes, chance: Random) -> None:
    """Keep any pieces of the disk under the write, each perhaps up to any byte."""
    start = 0
    while start < len(data):
        end = min(len(data), start + PIECE_BYTES - (offset + start) % PIECE_BYTES)
        fate = chance.random()
        if fate < 0.15:
            end_kept = chance.randrange(start, end)
            _put(image, offset + start, data[start:end_kept])
        elif fate < 0.6:
            _put(image, offset + start, data[start:end])
        start = end
    if chance.random() < 0.3:
        _put(image, offset + len(data), b"")


@dataclass(slots=True)
class NameChange:
    """A file gets a name, loses one, or both (a rename); each half may be sure by itself."""

    file: File
    target: str | None = None
    source: str | None = None
    is_target_sure: bool = False
    is_source_sure: bool = False

    def sync(self, directory: str) -> None:
        if self.source is not None and directory_of(self.source) == directory:
            self.is_source_sure = True
            self.is_target_sure = True  # a rename never leaves a file without a name
        elif self.target is not None and directory_of(self.target) == directory:
            self.is_target_sure = True

    @property
    def is_sure(self) -> bool:
        return self.is_target_sure and self.is_source_sure

    def apply(self, names: dict[str, File], *, target: bool = True, source: bool = True) -> None:
        if target and self.target is not None:
            names[self.target] = self.file
        if source and self.source is not None and names.get(self.source) is self.file:
            del names[self.source]

    def apply_some(self, names: dict[str, File], chance: Random) -> None:
        """Apply what is sure, and the rest perhaps."""
        target = self.is_target_sure or chance.random() < 0.5
        source = self.is_source_sure or (target and (self._is_whole or chance.random() < 0.5))
        self.apply(names, target=target, source=source)

    @property
    def _is_whole(self) -> bool:
        """Whether both halves are in one directory, and so are one."""
        is_rename = self.source is not None and self.target is not None
        return is_rename and directory_of(self.source) == directory_of(self.target)


def directory_of(path: str) -> str:
    return path.rpartition("/")[0]


@dataclass(slots=True)
class Machine:
    """One file system under power. `on_step` is called after each call that changes anything."""

    names: dict[str, File] = field(default_factory=dict)
    on_step: Callable[[], None] = lambda: None
    _sure_names: dict[str, File] = field(default_factory=dict)
    _name_changes: list[NameChange] = field(default_factory=list)
    locks: dict[File, int] = field(default_factory=dict)  # the descriptor that holds each
    next_descriptor: int = 3

    def change_name(self, change: NameChange) -> None:
        change.apply(self.names)
        self._name_changes.append(change)

    def sync_directory(self, directory: str) -> None:
        for change in self._name_changes:
            change.sync(directory)
        # Only from the front: a later change of the same name must stay the later one.
        while self._name_changes and self._name_changes[0].is_sure:
            self._name_changes.pop(0).apply(self._sure_names)

    def cut_power(self, chance: Random) -> Machine:
        """Give a machine as it may come up again; this one stays as it is."""
        names = dict(self._sure_names)
        for change in self._name_changes:
            change.apply_some(names, chance)
        # A file under two names is still one file.
        files = {file: file.after_cut(chance) for file in names.values()}
        found = {path: files[file] for path, file in names.items()}
        return Machine(names=found, _sure_names=dict(found))

    def content(self) -> dict[str, bytes]:
        """Give what processes see."""
        return {path: file.seen for path, file in self.names.items()}


class ModelDisk(Disk):
    """The disk of a machine as one process sees it; the process may fail and die."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.is_dead = False
        self._files: dict[int, File] = {}
        self._fails_in: int | None = None
        self._dies_in: int | None = None

    def break_in(self, calls: int, *, dies: bool) -> None:
        """Let one call fail, or the process end before or within it, so many calls from now."""
        self.heal()
        if dies:
            self._dies_in = calls
        else:
            self._fails_in = calls

    def heal(self) -> None:
        """Take back what has not broken yet."""
        self._fails_in = self._dies_in = None

    def die(self) -> None:
        """End the process: its descriptors and locks go, the cache stays."""
        for descriptor in list(self._files):
            self.close(descriptor)
        self.is_dead = True

    def create(self, path: Path) -> int:
        self._enter()
        if str(path) in self.machine.names:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        self.machine.change_name(NameChange(File(), target=str(path), is_source_sure=True))
        descriptor = self.open(path)
        self.machine.on_step()
        return descriptor

    def open(self, path: Path) -> int:
        file = self._find(path)
        descriptor = self.machine.next_descriptor
        self.machine.next_descriptor += 1
        self._files[descriptor] = file
        return descriptor

    def try_lock(self, descriptor: int, path: Path) -> bool:
        file = self._files[descriptor]
        holder = self.machine.locks.setdefault(file, descriptor)
        return holder == descriptor and self.machine.names.get(str(path)) is file

    def read(self, path: Path) -> bytes:
        return self._find(path).seen

    def write(self, descriptor: int, data: memoryview) -> int:
        file = self._files[descriptor]
        # Also one that fails may have taken some, and one that does not may have taken few.
        is_failing = self._count_down()
        is_short = len(data) > PIECE_BYTES and len(data) % 5 == 0
        taken = max(1, len(data) // 2) if is_failing or is_short else len(data)
        file.append(bytes(data[:taken]))
        self.machine.on_step()
        if is_failing:
            self._break()
        return taken

    def fdatasync(self, descriptor: int) -> None:
        file = self._files[descriptor]
        if self._count_down():
            if self._fails_in == -1:
                file.fail_sync()
            self.machine.on_step()
            self._break()
        file.sync()
        self.machine.on_step()

    def fsync(self, descriptor: int) -> None:
        self.fdatasync(descriptor)

    def sync_directory(self, path: Path) -> None:
        self._enter()
        self.machine.sync_directory(str(path))
        self.machine.on_step()

    def truncate(self, descriptor: int, size_bytes: int) -> None:
        self._enter()
        self._files[descriptor].truncate(size_bytes)
        self.machine.on_step()

    def rename(self, source: Path, target: Path) -> None:
        file = self._find(source)
        self._enter()
        # Of two names of one file, POSIX keeps both.
        if self.machine.names.get(str(target)) is not file:
            change = NameChange(file, target=str(target), source=str(source))
            self.machine.change_name(change)
        self.machine.on_step()

    def remove(self, path: Path) -> None:
        file = self._find(path)
        self._enter()
        self.machine.change_name(NameChange(file, source=str(path), is_target_sure=True))
        self.machine.on_step()

    def close(self, descriptor: int) -> None:
        if self.is_dead:
            return
        file = self._files.pop(descriptor)
        if self.machine.locks.get(file) == descriptor:
            del self.machine.locks[file]

    def free_bytes(self, path: Path) -> int:
        return 1 << 40

    def _find(self, path: Path) -> File:
        self._refuse_if_dead()
        try:
            return self.machine.names[str(path)]
        except KeyError:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from None

    def _enter(self) -> None:
        if self._count_down():
            self._break()

    def _count_down(self) -> bool:
        """Say whether this call is the one that fails or dies."""
        self._refuse_if_dead()
        if self._fails_in is not None:
            self._fails_in -= 1
        if self._dies_in is not None:
            self._dies_in -= 1
        return self._fails_in == -1 or self._dies_in == -1

    def _refuse_if_dead(self) -> None:
        """Whatever clears up after an exception: a dead process does not."""
        if self.is_dead:
            raise KilledError

    def _break(self) -> None:
        if self._dies_in == -1:
            self.die()
            raise KilledError
        raise OSError(errno.EIO, os.strerror(errno.EIO))


class ModelSpool(Spool):
    """A spool whose directories are listed on a machine."""

    def __init__(self, machine: Machine) -> None:
        super().__init__("/spool")
        self._machine = machine

    def open_segments(self) -> list[Path]:
        return self._list(self.open)

    def ready_segments(self) -> list[Path]:
        return self._list(self.ready)

    def loaded_segments(self) -> list[Path]:
        return self._list(self.loaded)

    def _list(self, directory: Path) -> list[Path]:
        start = f"{directory}/"
        names = sorted(name for name in self._machine.names if name.startswith(start))
        return [_path(name) for name in names if name.endswith(SUFFIX)]


@functools.lru_cache(maxsize=1024)
def _path(name: str) -> Path:
    """Make a path, which costs more than all else here."""
    return Path(name)
