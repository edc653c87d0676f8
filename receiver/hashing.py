"""Hash an event without letting go of the interpreter's lock.

Python lets other threads run while it hashes more than some 2 KB at once. For an event that is a
few microseconds, and to get the lock back from the other thread takes longer: so it is hashed in
pieces that are too short for that. What is long lets the others run.
"""

from __future__ import annotations

import zlib
from typing import Protocol

_LONG_BYTES = 1 << 16
# One byte more, and hashlib or zlib let go of the lock.
_DIGEST_PIECE_BYTES = 2047
_CRC_PIECE_BYTES = 5 * 1024


class Digest(Protocol):
    """What hashlib and hmac make."""

    def update(self, data: memoryview, /) -> None:
        """Hash more bytes."""
        ...


def update(digest: Digest, data: bytes | memoryview) -> None:
    """Add data to a digest."""
    for piece in _pieces(data, _DIGEST_PIECE_BYTES):
        digest.update(piece)


def crc32(data: bytes | memoryview, seed: int) -> int:
    """Give the CRC-32 of data, starting from `seed`."""
    for piece in _pieces(data, _CRC_PIECE_BYTES):
        seed = zlib.crc32(piece, seed)
    return seed


def _pieces(data: bytes | memoryview, size_bytes: int) -> list[memoryview]:
    view = memoryview(data)
    if len(view) > _LONG_BYTES:
        return [view]
    return [view[start : start + size_bytes] for start in range(0, len(view), size_bytes)]
