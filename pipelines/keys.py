"""Make the row keys: deterministic, so the same spool builds the same warehouse.

The key of an event is a hash of its id; the key of an array's element is mixed from
its parent's key, the array's path and the element's position. Two lanes of 64 bits go
down the tree and 96 bits of them are written, as 16 characters: at a billion rows the
odds of any two being equal are one in 10^11. A whole column is mixed at once with
numpy; the constants are those of splitmix64.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

U64 = np.uint64
Lane = npt.NDArray[np.uint64]

_ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
# Two characters for each 12 bits, so that a key is eight look-ups.
_PAIRS = np.array([a | b << 8 for a in _ALPHABET for b in _ALPHABET], dtype="<u2")
_CHARACTERS = 16


@dataclass(frozen=True, slots=True)
class RowKeys:
    """The keys of a column of rows, as two lanes of equal length."""

    high: Lane
    low: Lane

    def take(self, rows: npt.NDArray[np.int64]) -> RowKeys:
        return RowKeys(self.high[rows], self.low[rows])

    def to_arrow(self) -> pa.StringArray:
        """Write each key as 16 characters of URL-safe base64."""
        groups = np.empty((len(self.high), 8), dtype="<u2")
        for group in range(5):
            groups[:, group] = _PAIRS[(self.high >> U64(52 - 12 * group)) & U64(0xFFF)]
        joint = ((self.high & U64(0xF)) << U64(32)) | (self.low >> U64(32))
        for group in range(5, 8):
            groups[:, group] = _PAIRS[(joint >> U64(24 - 12 * (group - 5))) & U64(0xFFF)]
        offsets = np.arange(len(groups) + 1, dtype=np.int32) * _CHARACTERS
        return pa.StringArray.from_buffers(len(groups), pa.py_buffer(offsets), pa.py_buffer(groups))


def root_keys(names: Iterable[str]) -> RowKeys:
    """Make the keys of the rows with these names (event ids, say)."""
    digests = b"".join(hashlib.sha256(name.encode()).digest()[:16] for name in names)
    lanes = np.frombuffer(digests, dtype=">u8").astype(U64).reshape(-1, 2)
    return RowKeys(lanes[:, 0], lanes[:, 1])


def child_keys(
    parents: RowKeys, path: tuple[str, ...], positions: npt.NDArray[np.int64]
) -> RowKeys:
    """Make the keys of the elements at `positions` of each parent's array at `path`."""
    name = hashlib.sha256("\x1f".join(path).encode("utf-8", "surrogatepass")).digest()
    spot = _mix(positions.astype(U64) + U64(int.from_bytes(name[:8], "big")))
    return RowKeys(_mix(parents.high ^ spot), _mix(parents.low + spot))


def _mix(lane: Lane) -> Lane:
    lane = lane + U64(0x9E3779B97F4A7C15)
    lane = (lane ^ (lane >> U64(30))) * U64(0xBF58476D1CE4E5B9)
    lane = (lane ^ (lane >> U64(27))) * U64(0x94D049BB133111EB)
    return lane ^ (lane >> U64(31))
