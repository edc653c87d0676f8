"""One line of the spool: the only codec, used by the writer and by every reader.

Pure: values in, bytes out, and back. A line is plain JSON, and checks itself (here on three lines):

    {"v":1,"n":17,"webhook_id":"evt_…","webhook_timestamp":"1739571908",
     "webhook_signature":"v1,…","received_at":"2026-11-23T17:22:05.123456Z",
     "event":{…},"crc32":"9f3a01c2"}

What must stay true:

- `event` is the body byte for byte, if it is JSON without a raw line break. Any other body becomes
  `"body":"<the same text>"`, or `"body_base64":"…"` if it is not UTF-8. Never lost, never changed.
- `crc32` covers every byte before it and starts from the segment's name, so that it finds flipped
  bits, torn lines, and blocks of another file. It has a fixed width and a fixed place.
- The envelope has a fixed order and no spaces, so a reader finds the body without parsing it.

The last line of a sealed segment is its seal: how many lines, how many bytes, and their digest.
"""

from __future__ import annotations

import base64
import re
import zlib
from dataclasses import dataclass
from typing import Literal, NamedTuple

import msgspec
import orjson

from receiver.errors import LineError
from receiver.hashing import crc32

BodyKind = Literal["event", "body", "body_base64"]

LINE_START = b'{"v":1,"n":'
TAIL_BYTES = len(b',"crc32":"00000000"}\n')

_STRING = rb'("[^"\\]*(?:\\.[^"\\]*)*")'
_ENVELOPE = re.compile(
    rb'\{"v":1,"n":(0|[1-9][0-9]{0,17}),"webhook_id":' + _STRING + rb',"webhook_timestamp":'
    + _STRING + rb',"webhook_signature":' + _STRING + rb',"received_at":' + _STRING
    + rb',"(event|body|body_base64)":'
)  # fmt: skip
_NUMBER = re.compile(rb'\{"v":1,"n":(0|[1-9][0-9]{0,17}),')
_SEAL = re.compile(
    rb'\{"v":1,"seal":\{"count":(0|[1-9][0-9]{0,17}),"bytes":(0|[1-9][0-9]{0,17}),'
    rb'"sha256":"([0-9a-f]{64})"\}'
)


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """What is kept of one accepted request: three header texts, the time, the body as received.

    The texts hold no lone surrogates; `webhook_signature` is the entry that our key has proven.
    """

    webhook_id: str
    webhook_timestamp: str
    webhook_signature: str
    received_at: str
    body: bytes


@dataclass(frozen=True, kw_only=True)
class Line:
    """A delivery and its number in its segment, counted from 0."""

    n: int
    delivery: Delivery


@dataclass(frozen=True, kw_only=True)
class Seal:
    """What a sealed segment says about itself: lines, bytes before the seal, their SHA-256."""

    count: int
    size_bytes: int
    sha256: str


class Envelope(NamedTuple):
    """Where things are in one line. `start` and `end` bound the raw body in the data given.

    The raw body is JSON: the event itself, or a string that `decode_body` turns into the bytes.
    """

    n: int
    webhook_id: str
    webhook_timestamp: str
    webhook_signature: str
    received_at: str
    kind: BodyKind
    start: int
    end: int


def segment_seed(name: str) -> int:
    """Give the number from which every checksum of a segment starts.

    So a checksum is that of the name followed by the line.
    """
    return zlib.crc32(name.encode("ascii"))


def encode_line(delivery: Delivery, *, n: int, seed: int) -> bytes:
    """Write one delivery as line `n` of the segment with this seed; ends with a newline."""
    kind, raw_body = _encode_body(delivery.body)
    # The texts are JSON-encoded: an id may hold quotes and backslashes.
    head = (
        b'%b%d,"webhook_id":%b,"webhook_timestamp":%b,"webhook_signature":%b,"received_at":%b'
        % (
            LINE_START,
            n,
            orjson.dumps(delivery.webhook_id),
            orjson.dumps(delivery.webhook_timestamp),
            orjson.dumps(delivery.webhook_signature),
            orjson.dumps(delivery.received_at),
        )
    )
    return _with_checksum(b'%b,"%b":%b' % (head, kind.encode(), raw_body), seed)


def encode_seal(*, count: int, size_bytes: int, sha256: str, seed: int) -> bytes:
    """Write the last line of a segment; `sha256` is the hex digest of all bytes before it."""
    text = f'{{"v":1,"seal":{{"count":{count},"bytes":{size_bytes},"sha256":"{sha256}"}}'
    return _with_checksum(text.encode("ascii"), seed)


def decode_line(line: bytes, *, seed: int) -> Line:
    """Read one whole line, newline included, after checking it. Raises LineError."""
    if not is_intact(line, 0, len(line), seed=seed):
        raise LineError("the checksum does not fit")
    envelope = split_line(line)
    return Line(
        n=envelope.n,
        delivery=Delivery(
            webhook_id=envelope.webhook_id,
            webhook_timestamp=envelope.webhook_timestamp,
            webhook_signature=envelope.webhook_signature,
            received_at=envelope.received_at,
            body=decode_body(envelope.kind, line[envelope.start : envelope.end]),
        ),
    )


def is_intact(data: bytes | memoryview, start: int, end: int, *, seed: int) -> bool:
    """Say whether data[start:end], newline included, carries its own checksum."""
    covered_end = end - TAIL_BYTES
    if covered_end < start:
        return False
    checksum = crc32(memoryview(data)[start:covered_end], seed)
    return data[covered_end:end] == b',"crc32":"%08x"}\n' % checksum


def line_number(data: bytes, start: int) -> int | None:
    """Give the `n` of the line that starts here; None if no line of version 1 does."""
    match = _NUMBER.match(data, start)
    return None if match is None else int(match[1])


def parse_seal(data: bytes, start: int, end: int) -> Seal | None:
    """Read data[start:end] as a seal, already known to be intact; None if it is something else."""
    match = _SEAL.fullmatch(data, start, end - TAIL_BYTES)
    if match is None:
        return None
    return Seal(count=int(match[1]), size_bytes=int(match[2]), sha256=match[3].decode("ascii"))


def split_line(data: bytes, start: int = 0, end: int | None = None) -> Envelope:
    """Find the parts of the line data[start:end], already known to be intact, without parsing it.

    `start` and `end` of the answer count from the beginning of `data`. Raises LineError.
    """
    match = _ENVELOPE.match(data, start)
    if match is None:
        raise LineError("the envelope is not one of version 1")
    n, webhook_id, timestamp, signature, received_at, kind = match.groups()
    return Envelope(
        n=int(n),
        webhook_id=_text(webhook_id),
        webhook_timestamp=_text(timestamp),
        webhook_signature=_text(signature),
        received_at=_text(received_at),
        kind=_KINDS[kind],
        start=match.end(),
        end=(len(data) if end is None else end) - TAIL_BYTES,
    )


def decode_body(kind: BodyKind, raw: bytes) -> bytes:
    """Give the body as received from its raw form in a line. Raises LineError."""
    if kind == "event":
        return raw
    try:
        text = orjson.loads(raw)
        return base64.b64decode(text, validate=True) if kind == "body_base64" else text.encode()
    except (ValueError, AttributeError, TypeError) as error:
        raise LineError(f"the {kind} is not a string that holds one") from error


_KINDS: dict[bytes, BodyKind] = {b"event": "event", b"body": "body", b"body_base64": "body_base64"}


def _text(quoted: bytes) -> str:
    if b"\\" not in quoted:
        return quoted[1:-1].decode()
    return str(orjson.loads(quoted))


def _encode_body(body: bytes) -> tuple[BodyKind, bytes]:
    if _is_json_on_one_line(body):
        return "event", body
    try:
        return "body", orjson.dumps(body.decode("utf-8"))
    except UnicodeDecodeError:
        return "body_base64", b'"%b"' % base64.b64encode(body)


# Checks the grammar and makes no objects, which would be thrown away.
_JSON = msgspec.json.Decoder(msgspec.Raw)


def _is_json_on_one_line(body: bytes) -> bool:
    if b"\n" in body or b"\r" in body:
        return False
    try:
        _JSON.decode(body)
        body.isascii() or body.decode("utf-8")  # it does not look into strings
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


def _with_checksum(text: bytes, seed: int) -> bytes:
    return b'%b,"crc32":"%08x"}\n' % (text, crc32(text, seed))
