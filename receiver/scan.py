"""Find the good lines of a segment, and every damage, in its bytes.

Pure: bytes in, positions out; damage is a result here, never an exception. In this order:

1. Cut at newlines; a piece that carries its own checksum is a line, or a seal.
2. A piece that does not may still hide good lines, if only a newline was hit: each place where a
   line could start is tried. What stays bad is joined to one damage per stretch.
3. The lines' numbers say which are missing or there twice; the seal says whether all is there.

The first step is the hot one (a find, a checksum and a compare for each line); the others only look
at what is bad. Nothing after a bad place is given up.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from receiver.record import (
    Seal,
    is_intact,
    line_number,
    parse_seal,
    segment_seed,
)

_LINE_START = re.compile(re.escape(b'{"v":1,"'))
_LINE_END = re.compile(rb',"crc32":"[0-9a-f]{8}"\}')
_TRIED_ENDS = 16  # a body may itself hold what looks like an end of line, but hardly this often


class LineSpan(NamedTuple):
    """Where one good line lies, its newline's place included, and its number in the segment."""

    start: int
    end: int
    n: int


@dataclass(frozen=True, kw_only=True)
class Damage:
    """One stretch of bytes that is not as it was written; of size 0 where something is missing."""

    offset: int
    size_bytes: int
    reason: str

    @property
    def end(self) -> int:
        """The offset of the first byte after it."""
        return self.offset + self.size_bytes


@dataclass(frozen=True, kw_only=True)
class SegmentContent:
    """What was found in a segment: its bytes, its good lines and its damages, both in file order.

    `seal` is the intact seal at the very end; None if there is none.
    """

    name: str
    data: bytes
    lines: list[LineSpan]
    damages: list[Damage]
    seal: Seal | None

    @property
    def is_sealed(self) -> bool:
        """Whether the last line is an intact seal."""
        return self.seal is not None


def scan_segment(name: str, data: bytes, *, is_open: bool = False) -> SegmentContent:
    """Find all good lines and all damages; only an open segment may lack its seal."""
    pieces = _cut(data, segment_seed(name))
    damages = [_describe(data, start, end) for start, end in _join(pieces.bad)]
    lines = _check_numbers(pieces.lines, damages)
    seal = _check_seals(pieces.seals, len(data), damages)
    if seal is None and not is_open:
        damages.append(Damage(offset=len(data), size_bytes=0, reason="the seal is missing"))
    if seal is not None and not damages:
        damages.extend(_compare_with_seal(seal, data, pieces.seals[-1].start, len(lines)))
    damages.sort(key=lambda damage: damage.offset)
    return SegmentContent(name=name, data=data, lines=lines, damages=damages, seal=seal)


class _SealSpan(NamedTuple):
    start: int
    end: int
    seal: Seal


@dataclass(frozen=True)
class _Pieces:
    """The bytes of a segment, sorted into what they are; `bad` holds (start, end)."""

    lines: list[LineSpan]
    seals: list[_SealSpan]
    bad: list[tuple[int, int]]

    def try_take(self, data: bytes, start: int, end: int) -> bool:
        """Take data[start:end], already known to be intact, if it is a line or a seal."""
        n = line_number(data, start)
        if n is not None:
            self.lines.append(LineSpan(start, end, n))
            return True
        seal = parse_seal(data, start, end)
        if seal is not None:
            self.seals.append(_SealSpan(start, end, seal))
        return seal is not None


def _cut(data: bytes, seed: int) -> _Pieces:
    pieces = _Pieces([], [], [])
    view = memoryview(data)
    start, size = 0, len(data)
    while start < size:
        end = data.find(b"\n", start) + 1 or size
        if not (is_intact(view, start, end, seed=seed) and pieces.try_take(data, start, end)):
            _cut_bad(pieces, data, start, end, seed)
        start = end
    return pieces


def _cut_bad(pieces: _Pieces, data: bytes, start: int, end: int, seed: int) -> None:
    """Sort a piece that is no line as a whole: it may hold lines whose newline was hit."""
    position = start
    while (found := _LINE_START.search(data, position, end)) is not None:
        line_end = _find_line_end(data, found.start(), end, seed)
        if line_end is None or not pieces.try_take(data, found.start(), line_end):
            position = found.end()
            continue
        pieces.bad.append((start, found.start()))
        if data[line_end - 1 : line_end] != b"\n":
            pieces.bad.append((line_end - 1, line_end))
        start = position = line_end
    pieces.bad.append((start, end))


def _find_line_end(data: bytes, start: int, end: int, seed: int) -> int | None:
    """Give the end of a line that starts here, whatever stands in its newline's place."""
    for _, found in zip(range(_TRIED_ENDS), _LINE_END.finditer(data, start, end - 1), strict=False):
        line = data[start : found.end()] + b"\n"
        if is_intact(line, 0, len(line), seed=seed):
            return found.end() + 1
    return None


def _join(stretches: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Join stretches that touch, and leave out empty ones."""
    start = end = 0
    for next_start, next_end in stretches:
        if next_start > end:
            if end > start:
                yield start, end
            start = next_start
        end = next_end
    if end > start:
        yield start, end


def _describe(data: bytes, start: int, end: int) -> Damage:
    if not data[start:end].strip(b"\0\n"):
        reason = "zeros where lines should be"
    elif end == len(data) and data[end - 1 : end] != b"\n":
        reason = "the last line is torn"
    else:
        reason = "the checksum does not fit"
    return Damage(offset=start, size_bytes=end - start, reason=reason)


def _check_numbers(lines: list[LineSpan], damages: list[Damage]) -> list[LineSpan]:
    """Give the lines without repeats; add to `damages` what the numbers say."""
    if all(line.n == index for index, line in enumerate(lines)):
        return lines
    kept: dict[int, LineSpan] = {}
    expected = 0
    for line in lines:
        if line.n in kept:
            reason = f"line {line.n} is there again"
            damages.append(
                Damage(offset=line.start, size_bytes=line.end - line.start, reason=reason)
            )
            continue
        if line.n != expected:
            damages.append(
                Damage(offset=line.start, size_bytes=0, reason=_misplaced(line.n, expected))
            )
        kept[line.n] = line
        expected = max(expected, line.n + 1)
    return list(kept.values())


def _misplaced(n: int, expected: int) -> str:
    if n < expected:
        return f"line {n} is out of place"
    if n == expected + 1:
        return f"line {expected} is missing"
    return f"lines {expected} to {n - 1} are missing"


def _check_seals(seals: list[_SealSpan], size_bytes: int, damages: list[Damage]) -> Seal | None:
    """Give the seal at the end; any other one is a damage."""
    last = seals[-1].seal if seals and seals[-1].end == size_bytes else None
    damages.extend(
        Damage(offset=span.start, size_bytes=0, reason="there are bytes after the seal")
        for span in (seals if last is None else seals[:-1])
    )
    return last


def _compare_with_seal(seal: Seal, data: bytes, seal_start: int, count: int) -> Iterator[Damage]:
    """Say where a segment without other damage differs from its seal."""
    if (seal.count, seal.size_bytes) != (count, seal_start):
        reason = (
            f"the seal says {seal.count} lines in {seal.size_bytes} bytes, "
            f"here are {count} in {seal_start}"
        )
    elif hashlib.sha256(memoryview(data)[:seal_start]).hexdigest() != seal.sha256:
        reason = "the digest in the seal does not fit"
    else:
        return
    yield Damage(offset=seal_start, size_bytes=0, reason=reason)
