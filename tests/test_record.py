"""One line of the spool: golden bytes, and every body comes back as it went in."""

from __future__ import annotations

import dataclasses
import json
import re

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from receiver.errors import LineError
from receiver.record import (
    Delivery,
    Envelope,
    Line,
    Seal,
    decode_body,
    decode_line,
    encode_line,
    encode_seal,
    parse_seal,
    segment_seed,
    split_line,
)

SEED = segment_seed("20261123T172205.123456Z-17-c0ffee")
DELIVERY = Delivery(
    webhook_id="evt_1",
    webhook_timestamp="1739571908",
    webhook_signature="v1,c2ln",
    received_at="2026-11-23T17:22:05.123456Z",
    body=b'{"id":"evt_1"}',
)
HEAD = (
    b'{"v":1,"n":17,"webhook_id":"evt_1","webhook_timestamp":"1739571908",'
    b'"webhook_signature":"v1,c2ln","received_at":"2026-11-23T17:22:05.123456Z",'
)
visible_ascii = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1)
json_bodies = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
).map(lambda value: json.dumps(value).encode())
JSON_PIECES = [
    *(bytes([byte]) for byte in b'{}[],:"\\/.-+eE01 \t\x00\x1f\x7f\xff'),
    *(b"null", b"true", b"fals", b"NaN", b"Infinity", b"-0", b"1.5", b"01", b"1e400", b"0x1"),
    *(b'"a":', b'"b"', b"\\n", b"\\x", b"\\u00e9", b"\\ud83d", b"\\ude00", b"\\u12"),
    *(b"\xc3\xa9", b"\xed\xa0\x80", b"\xf0\x9f\x98\x80", b"\xc0\x80", b"\xef\xbb\xbf"),
]


def with_body(body: bytes) -> Delivery:
    return dataclasses.replace(DELIVERY, body=body)


@pytest.mark.parametrize(
    ("body", "kept", "checksum"),
    [
        (b'{"id":"evt_1"}', b'"event":{"id":"evt_1"}', b"c940563c"),
        (b' [1,\t2] ', b'"event": [1,\t2] ', b"c8595a9d"),
        (b'{\n}', b'"body":"{\\n}"', b"6aa0ed13"),
        (b'{}\r', b'"body":"{}\\r"', b"d2590879"),
        (b"", b'"body":""', b"7154982f"),
        ('{"naïve'.encode(), '"body":"{\\"naïve"'.encode(), b"04fe2568"),
        (b"NaN", b'"body":"NaN"', b"9ab18782"),
        (b"\xff\x00", b'"body_base64":"/wA="', b"1b7cb915"),
        (b'{"a":1e999}', b'"event":{"a":1e999}', b"c6a77196"),
        (b'"\xff"', b'"body_base64":"Iv8i"', b"30459712"),
        (b'"\\ud800"', b'"body":"\\"\\\\ud800\\""', b"f200d139"),
    ],
)  # fmt: skip
def test_a_line_is_these_bytes(body: bytes, kept: bytes, checksum: bytes) -> None:
    line = encode_line(with_body(body), n=17, seed=SEED)
    assert line == HEAD + kept + b',"crc32":"%b"}\n' % checksum


def test_a_seal_is_these_bytes() -> None:
    seal = encode_seal(count=2, size_bytes=300, sha256="ab" * 32, seed=SEED)
    assert seal == (
        b'{"v":1,"seal":{"count":2,"bytes":300,"sha256":"%b"},"crc32":"dfbb7285"}\n' % (b"ab" * 32)
    )
    assert parse_seal(seal, 0, len(seal)) == Seal(count=2, size_bytes=300, sha256="ab" * 32)


def test_a_line_is_no_seal() -> None:
    line = encode_line(DELIVERY, n=0, seed=SEED)
    assert parse_seal(line, 0, len(line)) is None


@example(b'{"a":1}{"b":2}')
@example(b'{"crc32":"00000000"}')
@example(b"[" * 2000 + b"]" * 2000)
@example(b"1" * 5000)
@example(b'"\\ud800"')
@example(b"\xef\xbb\xbf{}")
@example("\u2028\x85".encode())
@given(st.binary() | json_bodies)
def test_every_body_comes_back_as_it_went_in(body: bytes) -> None:
    line = encode_line(with_body(body), n=3, seed=SEED)
    assert decode_line(line, seed=SEED) == Line(n=3, delivery=with_body(body))


@given(st.binary() | json_bodies)
def test_every_line_is_one_line_of_json(body: bytes) -> None:
    line = encode_line(with_body(body), n=3, seed=SEED)
    assert line.splitlines() == [line[:-1]]
    assert json.loads(line)["n"] == 3


@given(st.lists(st.sampled_from(JSON_PIECES), max_size=8).map(b"".join))
def test_an_event_is_what_others_read_as_json(body: bytes) -> None:
    is_event = b'"event":' + body in encode_line(with_body(body), n=3, seed=SEED)
    if is_event:
        json.loads(body.decode("utf-8"), parse_constant=pytest.fail)
    else:
        with pytest.raises(orjson.JSONDecodeError):
            orjson.loads(body)


@given(webhook_id=visible_ascii, signature=visible_ascii)
def test_every_header_text_comes_back_as_it_went_in(webhook_id: str, signature: str) -> None:
    delivery = dataclasses.replace(DELIVERY, webhook_id=webhook_id, webhook_signature=signature)
    line = encode_line(delivery, n=0, seed=SEED)
    assert decode_line(line, seed=SEED).delivery == delivery


@given(body=st.binary() | json_bodies, before=st.binary(), after=st.binary())
def test_split_finds_the_body_wherever_the_line_lies(
    body: bytes, before: bytes, after: bytes
) -> None:
    line = encode_line(with_body(body), n=3, seed=SEED)
    data = before + line + after
    envelope = split_line(data, len(before), len(before) + len(line))
    assert decode_body(envelope.kind, data[envelope.start : envelope.end]) == body


def test_split_gives_the_envelope_without_parsing_the_body() -> None:
    line = encode_line(DELIVERY, n=17, seed=SEED)
    assert split_line(line) == Envelope(
        n=17,
        webhook_id="evt_1",
        webhook_timestamp="1739571908",
        webhook_signature="v1,c2ln",
        received_at="2026-11-23T17:22:05.123456Z",
        kind="event",
        start=len(HEAD) + len(b'"event":'),
        end=len(line) - len(b',"crc32":"00000000"}\n'),
    )


def test_a_line_of_another_segment_is_refused() -> None:
    line = encode_line(DELIVERY, n=0, seed=segment_seed("another"))
    with pytest.raises(LineError, match=r"^the checksum does not fit$"):
        decode_line(line, seed=SEED)


def test_every_flipped_bit_is_found() -> None:
    line = encode_line(DELIVERY, n=0, seed=SEED)
    for bit in range(len(line) * 8):
        flipped = bytearray(line)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(LineError, match=r"^the checksum does not fit$"):
            decode_line(bytes(flipped), seed=SEED)


@pytest.mark.parametrize(
    "head",
    [b"{}", b'{"v":2,"n":0', HEAD[:-1], HEAD + b'"event2":1', HEAD.replace(b"17", b"017")],
)
def test_an_intact_line_of_another_form_is_refused(head: bytes) -> None:
    with pytest.raises(LineError, match=re.escape("the envelope is not one of version 1")):
        split_line(head + b',"crc32":"00000000"}\n')


@pytest.mark.parametrize("kind", ["body", "body_base64"])
@pytest.mark.parametrize("raw", [b"", b"{", b"17", b"null", b'"\xff"'])
def test_a_raw_body_that_holds_no_text_is_refused(kind: str, raw: bytes) -> None:
    with pytest.raises(LineError, match=f"^the {kind} is not a string that holds one$"):
        decode_body("body" if kind == "body" else "body_base64", raw)


def test_a_body_with_a_kind_that_is_not_base64_is_refused() -> None:
    with pytest.raises(LineError, match=r"^the body_base64 is not a string that holds one$"):
        decode_body("body_base64", orjson.dumps("not base64!"))
