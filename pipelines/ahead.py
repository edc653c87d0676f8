"""Read packages of segments ahead, and flatten their events in threads.

What is done here needs neither dlt nor the warehouse: the first package is on its way while dlt is
imported and the warehouse is asked what it holds. pyarrow works outside the interpreter's lock, so
the threads have a core each.

Nothing is decided here: every event is flattened once, and what the warehouse turns out to hold
already is left out later.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import pyarrow as pa

from pipelines.memory import give_back_memory
from pipelines.parse import Parser
from pipelines.take import TakenLine, take_lines
from receiver.segment import SegmentContent, read_segment

if TYPE_CHECKING:
    from pipelines.flatten import FlatTable

# Bounds memory and disk however long the backlog is; about 20,000 large events.
PACKAGE_BYTES = 160 << 20
BLOCK_BYTES = 16 << 20
# What is read of the next package while one is stored: with DuckDB's memory beside it, no more than
# a whole package takes before it is stored.
AHEAD_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Block:
    """Some lines as flat tables, but for those that must go value by value."""

    lines: Sequence[TakenLine]
    tables: list[FlatTable]
    odd: Sequence[TakenLine]


Blocks: TypeAlias = list[Future[Block]]


@dataclass(slots=True)
class Package:
    """Whole segments, their lines in order, and the blocks that are being made of them.

    Of the lines of one event only the first is in a block, and none that is no JSON object.
    """

    read_next: Callable[[], object]
    segments: list[SegmentContent] = field(default_factory=list)
    lines: list[TakenLine] = field(default_factory=list)
    blocks: Blocks = field(default_factory=list)

    def flat_lines(self) -> set[TakenLine]:
        """Wait for the blocks; give the lines that are flat tables by then."""
        flat: set[TakenLine] = set()
        for future in self.blocks:
            block = future.result()
            flat.update(block.lines)
            flat.difference_update(block.odd)
        return flat

    def clear(self) -> None:
        """Forget what was read, once it is in files of its own; the next is read meanwhile."""
        self.segments.clear()
        self.lines.clear()
        self.blocks.clear()
        give_back_memory()
        self.read_next()


class Flattener:
    """Flattens blocks of lines in threads; to be closed.

    Before `may_flatten` is set, it parses only: what flattens imports dlt, and modules that two
    threads import at once may be seen half made.
    """

    def __init__(self, may_flatten: threading.Event | None = None) -> None:
        self._may_flatten = may_flatten or _set_event()
        pa.array([])  # pyarrow looks for pandas at the first array: not in two threads at once
        self._pool = ThreadPoolExecutor(os.cpu_count(), "flatten")
        self._parser = Parser()

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def submit(self, lines: Iterable[TakenLine]) -> Iterator[Future[Block]]:
        """Cut lines into blocks, and start on each as soon as it is full."""
        for block in _cut(lines):
            yield self._pool.submit(flatten_block, self._parser, block, self._may_flatten)


class ReadAhead:
    """The packages of some segments, in order, each read before it is asked for.

    The first one as a whole, for nothing else is to be done; of the others a part, while the one
    before is stored.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._may_flatten = threading.Event()
        self._is_wanted = _set_event()
        self._flattener = Flattener(self._may_flatten)
        self._reader = ThreadPoolExecutor(1, "read-ahead")
        self._packages = self._read_packages(paths)
        self._next: Future[Package | None] | None = None
        self._start_next()

    def __enter__(self) -> ReadAhead:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: object, _trace: TracebackType | None
    ) -> None:
        self.allow_flattening()  # some may be waiting for it
        self._is_wanted.set()
        self._reader.shutdown(cancel_futures=True)
        self._flattener.close()

    def allow_flattening(self) -> None:
        """Say that dlt is imported."""
        self._may_flatten.set()

    def __iter__(self) -> Iterator[Package]:
        while (package := self._take_next()) is not None:
            yield package

    def _take_next(self) -> Package | None:
        self._is_wanted.set()
        package = self._start_next().result()
        self._next = None
        self._is_wanted.clear()
        return package

    def _start_next(self) -> Future[Package | None]:
        if self._next is None:
            self._next = self._reader.submit(next, self._packages, None)
        return self._next

    def _read_packages(self, paths: Sequence[Path]) -> Iterator[Package]:
        for part in cut_packages(paths, PACKAGE_BYTES):
            package = Package(self._start_next)
            package.blocks.extend(self._flattener.submit(self._read_lines(part, package)))
            yield package

    def _read_lines(self, paths: Sequence[Path], package: Package) -> Iterator[TakenLine]:
        """Read segments into the package; give the lines that blocks are made of."""
        event_ids: set[str] = set()
        size_bytes = 0
        for path in paths:
            if size_bytes >= AHEAD_BYTES:
                self._is_wanted.wait()
            segment = read_segment(path)
            lines = take_lines(segment)
            package.segments.append(segment)
            package.lines += lines
            size_bytes += len(segment.data)
            for line in lines:
                if line.is_object and line.event_id not in event_ids:
                    event_ids.add(line.event_id)
                    yield line


def cut_packages(paths: Iterable[Path], max_bytes: int) -> Iterator[list[Path]]:
    """Put segments into packages of at most `max_bytes` (or one segment), in order."""
    package: list[Path] = []
    size_bytes = 0
    for path in paths:
        segment_bytes = path.stat().st_size
        if package and size_bytes + segment_bytes > max_bytes:
            yield package
            package, size_bytes = [], 0
        package.append(path)
        size_bytes += segment_bytes
    if package:
        yield package


def _cut(lines: Iterable[TakenLine]) -> Iterator[list[TakenLine]]:
    block: list[TakenLine] = []
    size_bytes = 0
    for line in lines:
        block.append(line)
        size_bytes += len(line.body)
        if size_bytes >= BLOCK_BYTES:
            yield block
            block, size_bytes = [], 0
    if block:
        yield block


def _set_event() -> threading.Event:
    event = threading.Event()
    event.set()
    return event


def flatten_block(
    parser: Parser, lines: Sequence[TakenLine], may_flatten: threading.Event
) -> Block:
    """Parse and flatten the lines that fit their declared types; name the others."""
    parsed = parser.parse([line.body for line in lines])
    # dlt's naming comes with it, and dlt takes a second to import: parse meanwhile.
    may_flatten.wait()
    from pipelines.flatten import UnfitEventsError, flatten, make_context  # noqa: PLC0415

    odd = {*parsed.odd}
    rows, events = np.array(parsed.rows, dtype=np.int64), parsed.events
    tables: list[FlatTable] = []
    while len(rows) and not tables:
        try:
            tables = flatten(events, make_context([lines[row] for row in rows]))
        except UnfitEventsError as error:
            odd.update(rows[error.events].tolist())
            fit = np.delete(np.arange(len(rows)), error.events)
            rows, events = rows[fit], events.take(pa.array(fit))
    return Block(lines, tables, [lines[row] for row in sorted(odd)])
