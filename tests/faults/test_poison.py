"""Signed events that no reader expects: the neighbours load, and nothing of the poison is lost.

Each value stands first, in the middle and last in a segment of its own, between healthy events. It
is loaded as far as it can be, every text and whole number of it in some column, or set aside whole
with its reason; its bytes stay in the spool; and no later load is blocked.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from postgres_server import Database, database, postgres, postgres_server
from serving import sealed_deliveries
from spools import (
    LOAD_COLUMNS,
    Place,
    Row,
    numbered_events,
    sample_document,
    to_body,
)

from pipelines.load import run_load
from pipelines.schema import DELIVERIES_TABLE, LOADS_TABLE
from receiver.config import read_settings

__all__ = ["database", "postgres", "postgres_server"]  # fixtures

POSITIONS = ("first", "middle", "last")
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def in_text(text: str) -> bytes:
    """Put raw JSON text into the sample as the value of an undeclared key."""
    body = to_body(sample_document() | {"poison": "HERE"})
    return body.replace(b'"HERE"', text.encode("utf-8", "surrogatepass"))


def as_key(key: str) -> bytes:
    return to_body(sample_document() | {key: "kept under an odd key"})


def with_session(**changes: object) -> bytes:
    document = sample_document()
    document["data"]["session"] |= changes
    return to_body(document)


def enriched_at(text: str) -> bytes:
    document = sample_document()
    document["data"]["enrichment"]["person"]["enrichedAt"] = text
    return to_body(document)


def nested(depth: int, opening: str, closing: str) -> str:
    return opening * depth + "1" + closing * depth


POISON: dict[str, bytes] = {
    # numbers
    "2^63": in_text(str(2**63)),
    "-2^63-1": in_text(str(-(2**63) - 1)),
    "2^64": in_text(str(2**64)),
    "2^53+1": in_text(str(2**53 + 1)),
    "5,000 digits": in_text("9" * 5000),
    "minus 5,000 digits": in_text("-" + "9" * 5000),
    "1e999": in_text("1e999"),
    "-1e999": in_text("-1e999"),
    "smallest double": in_text("5e-324"),
    "minus zero": in_text("-0.0"),
    "300 digits after the point": in_text("0." + "3" * 300),
    "NaN": in_text("NaN"),
    "Infinity": in_text("Infinity"),
    "-Infinity": in_text("-Infinity"),
    "NaN in quotes": in_text('"NaN"'),
    "a leading zero": in_text("007"),
    "a fraction for an integer": with_session(screen={"width": 1920.5, "height": 1080}),
    "an instant out of range": to_body(sample_document() | {"created": 10**30}),
    "a negative instant": to_body(sample_document() | {"created": -(10**15)}),
    "true for a number": to_body(sample_document() | {"created": True}),
    "a double first": in_text('{"halfway":1.5}'),
    "the lowest integer in a column of doubles": in_text('{"halfway":-9223372036854775808}'),
    # instants
    **{
        f"enriched at {text}": enriched_at(text)
        for text in (
            "0000-01-01T00:00:00Z",
            "0001-01-01T00:00:00+23:00",
            "9999-12-31T23:59:59-23:59",
            "2025-02-14T22:05:10.1234567Z",
            "2025-02-31T22:05:10Z",
            "yesterday",
        )
    },
    # text
    "a lone high surrogate": in_text('"a\\ud800b"'),
    "a lone low surrogate": in_text('"a\\udc00b"'),
    "surrogates the wrong way round": in_text('"\\udc00\\ud800"'),
    "NUL": in_text('"a\\u0000b"'),
    "NUL in a declared column": with_session(landingTitle="a\x00b"),
    "every control character": in_text(json.dumps("".join(map(chr, range(1, 32))))),
    "a backslash and u0000": in_text('"\\\\u0000"'),
    "a backslash and u0000 in options": with_session(options={"a": "\\u0000", "b": "\0"}),
    "a full object in options": with_session(options={"a": [1, {"b": None}], "c": "d"}),
    "options where none are declared": in_text('{"options":{"a":"b"},"props":null}'),
    "10,000 full props": with_session(events=[{"props": [n]} for n in range(10_000)]),
    "a raw control character": in_text('"a\x01b"'),
    "a megabyte": in_text('"' + "m" * 1_000_000 + '"'),
    "quotes and SQL": in_text(json.dumps("'; DROP TABLE events; --\"")),
    "right to left": in_text(json.dumps("\u202eabc\u2066")),
    **{
        f"starts with U+{point:04X}": in_text(json.dumps(chr(point) + "1"))
        for point in range(0xF026, 0xF02E)
    },
    # keys
    "a key twice at the top": to_body(sample_document())[:-1] + b',"type":"second"}',
    "a key twice below": in_text('{"a":1,"a":2,"a":"three"}'),
    "an empty key": as_key(""),
    "a key of spaces": as_key("   "),
    "a key of underscores": as_key("___"),
    "a key of 300 characters": as_key("k" * 300),
    "two keys alike for 299 characters": in_text(
        json.dumps({"k" * 299 + "a": "one", "k" * 299 + "b": "two"})
    ),
    "keys that collide": in_text('{"aB":"one","a_b":"two","a.b":"three","a b":"four"}'),
    "the key _dlt_id": as_key("_dlt_id"),
    "the key _dlt_load_id": as_key("_dlt_load_id"),
    "the key _dlt_parent_id": as_key("_dlt_parent_id"),
    "the key event_id": as_key("event_id"),
    "the key received_at": as_key("received_at"),
    "a key with SQL": as_key('"; DROP TABLE events; --'),
    "an emoji key": as_key("🦆"),
    "a key with NUL": in_text('{"a\\u0000b":"kept"}'),
    "a key with a surrogate": in_text('{"a\\ud800b":"kept"}'),
    "10,000 distinct keys": in_text(json.dumps({f"key_{n}": f"value_{n}" for n in range(10_000)})),
    # shapes
    "depth 100": in_text(nested(100, "[", "]")),
    "depth 1,000": in_text(nested(1000, "[", "]")),
    "objects 1,000 deep": in_text(nested(1000, '{"a":', "}")),
    "depth 100,000": in_text(nested(100_000, "[", "]")),
    "10,000 elements": in_text(json.dumps(list(range(10_000)))),
    "arrays in arrays": in_text('[[["deep"],[]],[[]],"shallow",null]'),
    "mixed elements": in_text('[1,"two",{"three":3},[4],null,true,5.5]'),
    "a scalar for an array": with_session(events="none"),
    "a number for an object": to_body(sample_document() | {"data": 7}),
    "an array for an object": to_body(sample_document() | {"data": [{"session": {"sid": "s"}}, 1]}),
    "an object for a text": with_session(sid={"not": "a text"}),
    "an array for a text": with_session(sid=["not", "a", "text"]),
    "null for everything": to_body(dict.fromkeys(sample_document())),
    "an empty object": b"{}",
    "no id": to_body({k: v for k, v in sample_document().items() if k != "id"}),
    "a null id": to_body(sample_document() | {"id": None}),
    "a number as id": to_body(sample_document() | {"id": 12}),
    "an object as id": to_body(sample_document() | {"id": {"a": "b"}}),
    "an unknown type": to_body(sample_document() | {"type": "nobody.knows"}),
    "a number as type": to_body(sample_document() | {"type": 5}),
    # not an object, or not JSON
    "an array at the top": b'[{"id":"x"}]',
    "a text at the top": b'"text"',
    "a number at the top": b"5",
    "null at the top": b"null",
    "nothing": b"",
    "spaces": b"   ",
    "half an event": to_body(sample_document())[:500],
    "two events": b'{"id":"a"}{"id":"b"}',
    "two lines": b'{"id":\n"a"}\r\n',
    "not UTF-8": b'{"id":"\xff\xfe"}',
    "a byte order mark": b"\xef\xbb\xbf" + to_body(sample_document()),
    "UTF-16": '{"id":"a"}'.encode("utf-16"),
    "any bytes": bytes(range(256)),
    "single quotes": b"{'id': 'a'}",
}  # fmt: skip
SET_ASIDE = {
    "a leading zero", "a raw control character", "depth 1,000", "objects 1,000 deep",
    "depth 100,000", "an array at the top", "a text at the top", "a number at the top",
    "null at the top", "nothing", "spaces", "half an event", "two events", "not UTF-8",
    "a byte order mark", "UTF-16", "any bytes", "single quotes",
}  # fmt: skip


def event_id(name: str, position: str) -> str:
    return f"evt_{list(POISON).index(name)}_{position}"


def fill(place: Place) -> None:
    """Write one segment for each value: poison, healthy, poison, healthy, poison."""
    for number, (name, body) in enumerate(POISON.items()):
        healthy = iter(numbered_events(2, first=2 * number))
        first, middle, last = [(event_id(name, position), body) for position in POSITIONS]
        place.send(f"s{number:03d}", first, next(healthy), middle, next(healthy), last)


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    place = Place(tmp_path_factory.mktemp("poisoned"))
    fill(place)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place.root)
        patch.setenv("RUNTIME__DLTHUB_TELEMETRY", "false")
        place.load()
        yield place


@pytest.fixture(scope="module")
def rows(poisoned: Place) -> dict[str, list[Row]]:
    return poisoned.all_rows()


def payload(rows: Mapping[str, list[Row]], ids: set[str]) -> dict[str, list[str]]:
    """Give the rows of these events by table, without what belongs to a load."""
    found: dict[str, list[str]] = {}
    for table, table_rows in rows.items():
        if table in (DELIVERIES_TABLE, LOADS_TABLE):
            continue
        kept = [
            repr(sorted((key, value) for key, value in row.items() if key not in LOAD_COLUMNS))
            for row in table_rows
            if row["event_id"] in ids
        ]
        if kept:
            found[table] = sorted(kept)
    return found


def test_there_is_enough_poison() -> None:
    assert len(POISON) >= 60
    assert set(POISON) >= SET_ASIDE


def test_the_neighbours_load_as_if_there_were_none(
    rows: dict[str, list[Row]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    healthy = numbered_events(2 * len(POISON))
    ids = {webhook_id for webhook_id, _ in healthy}
    found = payload(rows, ids)
    monkeypatch.chdir(tmp_path)
    alone = Place(tmp_path)
    alone.send("s", *healthy)
    alone.load()
    assert found == payload(alone.all_rows(), ids)
    print(f"{len(ids)} neighbours of {3 * len(POISON)} poisoned events, all rows as without")


@pytest.mark.parametrize("name", POISON)
def test_poison_is_loaded_or_set_aside_whole_at_each_position(
    rows: dict[str, list[Row]], name: str
) -> None:
    for position in POSITIONS:
        check(rows, name, event_id(name, position))


def check(rows: Mapping[str, list[Row]], name: str, webhook_id: str) -> None:
    (delivery,) = [row for row in rows[DELIVERIES_TABLE] if row["event_id"] == webhook_id]
    own = {
        table: [row for row in table_rows if row.get("event_id") == webhook_id]
        for table, table_rows in rows.items()
        if table not in (DELIVERIES_TABLE, LOADS_TABLE)
    }
    assert delivery["body_sha256"] == hashlib.sha256(POISON[name]).hexdigest()
    if name in SET_ASIDE:
        assert delivery["outcome"] == "set_aside"
        assert delivery["reason"]
        assert not any(own.values()), "a part of it is loaded"
        return
    assert (delivery["outcome"], delivery.get("reason")) == ("loaded", None)
    assert len(own["events"]) == 1
    cells = {
        str(cell) for table_rows in own.values() for row in table_rows for cell in row.values()
    }
    document = json.loads(
        POISON[name], object_pairs_hook=list, parse_int=str, parse_float=nearest_double
    )
    # What is no cell of its own has to stand in one of JSON text.
    held = "\n".join(cells)
    for value in set(leaves(document)) - cells:
        assert value in held, f"{value[:60]!r} is in no column"


def nearest_double(text: str) -> str:
    """Spell a number as a column of doubles holds it; one that no double is stays text."""
    return str(float(text)) if math.isfinite(float(text)) else text


def leaves(node: object) -> Iterator[str]:
    """Give every text of a document, keys left out; objects come as lists of pairs."""
    if isinstance(node, str):
        # Instants are written otherwise in their columns; the others are there as they are.
        if not re.match(r"\d{4}-\d\d-\d\dT|\d{13}\Z", node):
            yield _UNSTORABLE.sub("\ufffd", node)
    elif isinstance(node, tuple):
        yield from leaves(node[1])
    elif isinstance(node, list):
        for child in node:
            yield from leaves(child)


def test_the_bytes_of_all_poison_stay_in_the_spool(poisoned: Place) -> None:
    lines = sealed_deliveries(poisoned.spool.loaded_segments())
    kept = {delivery.webhook_id: delivery.body for delivery in lines}
    for name, body in POISON.items():
        for position in POSITIONS:
            assert kept[event_id(name, position)] == body


def test_the_same_poison_in_postgresql_has_the_same_fate(
    postgres: Database, poisoned: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place(tmp_path)
    fill(place)
    monkeypatch.chdir(tmp_path)
    report = run_load(read_settings(root=tmp_path, environ={}))
    outcomes = postgres.execute(
        "SELECT segment, line, event_id, outcome FROM midbound_data.deliveries ORDER BY 1, 2"
    )
    assert [tuple(row) for row in outcomes] == poisoned.outcomes()
    assert report.event_count == len(postgres.tables()["events"])


def test_flips_of_a_type_over_five_loads_block_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    place = Place(tmp_path)
    flips = [7, {"deep": "er"}, ["a", "b"], "text", 1.5, None, True, [{"x": 1}], {"deep": 2}]
    for number, value in enumerate(flips):
        document = sample_document() | {"flip": value}
        document["data"]["session"]["sid"] = value
        report = (place.send(f"s{number}", (f"evt_{number}", to_body(document))), place.load())[1]
        assert report.event_count == 1
        assert not report.set_aside
    assert len(place.rows("events")) == len(flips)
    held = str(place.all_rows())
    assert all(text in held for text in ("'er'", "'text'", "1.5", "'a'", "'b'"))


def test_a_later_load_of_healthy_events_is_not_blocked(poisoned: Place) -> None:
    events = numbered_events(5, first=10_000)
    poisoned.send("z", *events)
    report = poisoned.load()
    assert (report.event_count, report.set_aside) == (5, [])
