from __future__ import annotations

import hashlib
import zlib

import pytest

from receiver import hashing

SIZES = [0, 1, 2046, 2047, 2048, 5120, 5121, 9000, 65_536, 65_537, 200_000]


def data_of(size_bytes: int) -> bytes:
    return bytes(number * 31 % 251 for number in range(size_bytes))


@pytest.mark.parametrize("size_bytes", SIZES)
def test_pieces_hash_as_the_whole_does(size_bytes: int) -> None:
    data = data_of(size_bytes)
    digest = hashlib.sha256(b"before")
    hashing.update(digest, data)
    assert digest.digest() == hashlib.sha256(b"before" + data).digest()
    assert hashing.crc32(memoryview(data), 17) == zlib.crc32(data, 17)
