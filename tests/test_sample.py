"""The vendor's sample, from a sealed segment to DuckDB: nothing missing, nothing added.

The expectation is computed here by walking the document, with a naming rule of its own
and the table names of the design; no code of `pipelines` takes part in it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from serving import PATH, running, sign
from spools import Place, sample_body, sample_document, to_body

EVENT_ID = "evt_01KH5HM09WTF6DOE8K2H6DG2RI"

ARRAYS = {
    ("data", "session", "events"): "page_events",
    ("data", "session", "enrichments"): "session_enrichments",
    ("data", "enrichment", "person", "employments"): "employments",
    ("data", "enrichment", "person", "experience"): "experience",
    ("data", "enrichment", "person", "education"): "education",
    ("data", "enrichment", "person", "skills"): "skills",
    ("data", "enrichment", "person", "languages"): "languages",
    ("data", "enrichment", "companies"): "companies",
    ("data", "enrichment", "emailValidations"): "email_validations",
}
EPOCH_MS = {"created", "createdAt", "endedAt", "lastActivity", "ts", "enrichedAt"} | {
    "sessionEndedAt",
    "finalizedAt",
}
FREE_FORM = {"options", "props"}
OWN = {"_dlt_id", "_dlt_parent_id", "_dlt_list_idx", "_dlt_load_id"} | {
    "event_id",
    "event_type",
    "session_id",
    "visitor_id",
    "occurred_at",
    "received_at",
}
ROW_COUNTS = {
    "events": 1,
    "page_events": 3,
    "session_enrichments": 1,
    "employments": 1,
    "employments__company__specialties": 4,
    "employments__company__taxonomy__linkedin_specialties": 3,
    "experience": 1,
    "education": 1,
    "skills": 5,
    "languages": 3,
    "companies": 1,
    "companies__specialties": 4,
    "companies__taxonomy__linkedin_specialties": 3,
    "email_validations": 1,
    "deliveries": 1,
    "loads": 1,
}
EMPTY = {
    "identity_emails",
    "identity_phones",
    "companies__funding__investors",
    "employments__company__funding__investors",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("sample")
        patch.chdir(root)
        place = Place(root)
        place.send("segment-1", (EVENT_ID, sample_body()))
        place.load()
        yield place


def _snake(key: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", key).lower()


def _column(table: str, path: tuple[str, ...]) -> str:
    if table == "events" and path[:2] == ("data", "enrichment"):
        path = path[2:]
    elif table == "events" and path[0] == "data":
        path = path[1:]
    return "__".join(map(_snake, path)) or "value"


def _table(parent: str, path: tuple[str, ...]) -> str:
    return ARRAYS[path] if parent == "events" else f"{parent}__{'__'.join(map(_snake, path))}"


def _value(key: str, value: object) -> object:
    """Convert by the name of the field; DuckDB gives JSON as text."""
    if key in FREE_FORM and value is not None:
        return json.dumps(value)
    if key in EPOCH_MS and isinstance(value, int):
        return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=value)
    if key == "enrichedAt" and isinstance(value, str):
        return datetime.fromisoformat(value)
    return value


class _Walk:
    """Follow the document and the rows beside each other, counting what was compared."""

    def __init__(self, place: Place) -> None:
        self._rows = place.all_rows()
        self._columns = place.tables()
        self.row_counts: Counter[str] = Counter()
        self.cell_counts: Counter[str] = Counter()

    def record(self, table: str, row: dict, value: object) -> None:
        self.row_counts[table] += 1
        self._fields(table, row, (), value)

    def _fields(self, table: str, row: dict, path: tuple[str, ...], value: object) -> None:
        key = path[-1] if path else ""
        if isinstance(value, dict) and key not in FREE_FORM:
            for name, child in value.items():
                self._fields(table, row, (*path, name), child)
        elif isinstance(value, list):
            for index, element in enumerate(value):
                child_table = _table(table, path)
                self.record(child_table, self._child(child_table, row, index), element)
        else:
            column = _column(table, path)
            # A null may also stand for a declared object.
            names = self._columns[table]
            assert any(f"{name}__".startswith(f"{column}__") for name in names), (table, column)
            assert row.get(column) == _value(key, value), (table, column)
            self.cell_counts[table] += value is not None

    def _child(self, table: str, parent: dict, index: int) -> dict:
        (row,) = [
            row
            for row in self._rows[table]
            if (row["_dlt_parent_id"], row["_dlt_list_idx"]) == (parent["_dlt_id"], index)
        ]
        return row


def test_the_sample_gives_exactly_these_tables_and_rows(place: Place) -> None:
    assert place.counts() == ROW_COUNTS
    assert set(place.tables()) == set(ROW_COUNTS) | EMPTY


def test_every_leaf_of_the_sample_is_in_the_right_column_of_the_right_row(place: Place) -> None:
    walk = _Walk(place)
    (event,) = place.rows("events")
    walk.record("events", event, sample_document())

    payload_tables = {t: n for t, n in ROW_COUNTS.items() if t not in ("deliveries", "loads")}
    assert walk.row_counts == payload_tables
    # And nothing is there that the document does not hold.
    rows = place.all_rows()
    cells = {table: sum(len(row.keys() - OWN) for row in rows[table]) for table in payload_tables}
    assert walk.cell_counts == cells
    assert sum(cells.values()) == 234


def test_every_row_of_the_sample_carries_its_event(place: Place) -> None:
    all_rows = place.all_rows()
    for table in ROW_COUNTS.keys() - {"deliveries", "loads"}:
        for row in all_rows[table]:
            assert row["event_id"] == EVENT_ID
            assert row["event_type"] == "identity.session.finalized"
            assert row["session_id"] == "01KH5FW03R8XCZQ7PCYNV4ND1H"
            assert row["visitor_id"] == "01KH5FW03RXBE3EZGHKW8V1J7M"
            assert row["occurred_at"] == datetime(2025, 2, 14, 22, 30, 15, 678000, tzinfo=UTC)
            assert row["received_at"] == datetime(2026, 11, 23, 17, 22, 5, 123456, tzinfo=UTC)


def test_the_delivery_says_where_the_event_comes_from(place: Place) -> None:
    (delivery,) = place.rows("deliveries")
    (load,) = place.rows("loads")
    assert {name: value for name, value in delivery.items() if name != "loaded_at"} == {
        "event_id": EVENT_ID,
        "sent_at": datetime(2025, 2, 14, 22, 25, 8, tzinfo=UTC),
        "received_at": datetime(2026, 11, 23, 17, 22, 5, 123456, tzinfo=UTC),
        "size_bytes": len(sample_body()),
        "body_sha256": hashlib.sha256(sample_body()).hexdigest(),
        "segment": "segment-1",
        "line": 0,
        "outcome": "loaded",
        "_dlt_id": "pb6A7Ub7BVhycxiK",
        "_dlt_load_id": load["load_id"],
    }


def test_sent_signed_over_http_to_the_real_server_it_gives_the_same_rows(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = sample_body()
    with running(tmp_path, RECEIVER__MAX_BODY_BYTES=str(len(body))) as server:
        server.wait_until_up()
        connection = server.connect()
        connection.request("POST", PATH, body, sign(body, EVENT_ID))
        assert connection.getresponse().read() == b"ok"
        connection.close()
        assert server.stop() == 0
    monkeypatch.chdir(tmp_path)
    arrived = Place(tmp_path)
    arrived.load()
    assert arrived.counts() == ROW_COUNTS
    assert _payload(arrived) == _payload(place)


def _payload(place: Place) -> dict[str, list[dict]]:
    """Give all rows but for what differs from one arrival to another."""
    own = {"received_at", "_dlt_load_id"}
    return {
        table: [{name: cell for name, cell in row.items() if name not in own} for row in rows]
        for table, rows in place.all_rows().items()
        if table not in ("deliveries", "loads")
    }


def test_an_event_without_its_wrapper_or_session_still_has_its_context(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    place = Place(tmp_path)
    attribution = {"sessionId": "s", "vid": "v", "type": "session"}
    place.send("a", ("evt_1", to_body({"type": "t", "data": {"attribution": attribution}})))
    place.load()
    (event,) = place.rows("events")
    assert (event["event_id"], event["session_id"], event["visitor_id"]) == ("evt_1", "s", "v")
    assert "occurred_at" not in event


def test_the_first_load_creates_every_declared_table_as_the_golden_file_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    place = Place(tmp_path)
    place.send("a", ("evt_1", b"[]"))
    place.load()
    assert place.counts() == {"deliveries": 1, "loads": 1}
    lines = [
        f"{table}.{column} {kind}\n"
        for table, columns in place.tables().items()
        for column, kind in sorted(columns.items())
    ]
    golden = Path(__file__).with_name("declared_tables.txt")
    # A change here is one that every warehouse sees: compare, then copy what was built.
    built = tmp_path / golden.name
    built.write_text("".join(lines), encoding="utf-8")
    assert built.read_text(encoding="utf-8") == golden.read_text(encoding="utf-8"), built
