"""Fill a spool with segments of chosen names, load it into a DuckDB file, and read that.

A `Place` is one directory with a spool and a warehouse. Its segments are written with
the codec alone, so that a test decides names, order and bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from pipelines.ahead import Flattener
from pipelines.build import NamedTable, TableBuilder
from pipelines.columns import ColumnTypes
from pipelines.load import run_load
from pipelines.report import LoadReport
from pipelines.schema import Outcome
from pipelines.take import Decision, TakenLine
from receiver.config import read_settings
from receiver.record import Delivery, encode_line, encode_seal, segment_seed
from receiver.segment import Spool

SAMPLE_PATH = Path(__file__).with_name("identity.session.finalized.json")
DATASET = "midbound_data"
SENT_AT_S = 1739571908
RECEIVED_AT = "2026-11-23T17:22:05.123456Z"
# What differs between two loads of the same spool.
LOAD_COLUMNS = {"_dlt_load_id", "loaded_at"}

# An event id and its body.
Sent = tuple[str, bytes]
Row = dict[str, Any]


def sample_document() -> dict:
    """Give the vendor's sample, to be changed at will."""
    return json.loads(SAMPLE_PATH.read_bytes())


def to_body(document: object) -> bytes:
    """Write a document as the vendor does: compact, not escaped where it need not be."""
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode(
        "utf-8", "surrogatepass"
    )


def sample_body() -> bytes:
    return to_body(sample_document())


def numbered_events(count: int, first: int = 0) -> list[Sent]:
    """Make samples that differ in id, visitor and the number of page views."""
    events: list[Sent] = []
    for number in range(first, first + count):
        document = sample_document()
        document["id"] = f"evt_{number}"
        session = document["data"]["session"]
        session["vid"] = f"visitor_{number % 3}"
        session["events"] *= number % 3
        events.append((document["id"], to_body(document)))
    return events


def segment_bytes(name: str, deliveries: Iterable[Sent]) -> bytes:
    """Encode a sealed segment."""
    seed = segment_seed(name)
    lines = [
        encode_line(
            Delivery(
                webhook_id=event_id,
                webhook_timestamp=str(SENT_AT_S),
                webhook_signature="v1,c2lnbmVk",
                received_at=RECEIVED_AT,
                body=body,
            ),
            n=number,
            seed=seed,
        )
        for number, (event_id, body) in enumerate(deliveries)
    ]
    data = b"".join(lines)
    digest = hashlib.sha256(data).hexdigest()
    return data + encode_seal(count=len(lines), size_bytes=len(data), sha256=digest, seed=seed)


def write_segment(spool: Spool, name: str, deliveries: Iterable[Sent]) -> Path:
    """Put a sealed segment where a load takes it."""
    spool.create()
    path = spool.ready / f"{name}.jsonl"
    path.write_bytes(segment_bytes(name, deliveries))
    return path


@dataclass(frozen=True)
class Place:
    """A directory with a spool and a warehouse, which must be the working directory."""

    root: Path

    @property
    def spool(self) -> Spool:
        return Spool(self.root / "spool")

    def send(self, name: str, *deliveries: Sent) -> Path:
        return write_segment(self.spool, name, deliveries)

    def load(self) -> LoadReport:
        return run_load(read_settings(root=self.root, environ={}))

    def query(self, sql: str) -> list[tuple]:
        with self._connect() as connection:
            return connection.execute(sql).fetchall()

    @contextmanager
    def _connect(self) -> Iterator[duckdb.DuckDBPyConnection]:
        path = str(self.root / "midbound.duckdb")
        with closing(duckdb.connect(path, read_only=True)) as connection:
            connection.execute(f"SET schema = '{DATASET}'; SET TimeZone = 'UTC'")
            yield connection

    def tables(self) -> dict[str, dict[str, str]]:
        """Give every table with its columns and DuckDB types, without dlt's own."""
        found: dict[str, dict[str, str]] = {}
        for table, column, kind in self.query(
            "SELECT table_name, column_name, data_type FROM information_schema.columns "
            f"WHERE table_schema = '{DATASET}' AND table_name NOT LIKE '\\_dlt%' ESCAPE '\\' "
            "ORDER BY table_name, ordinal_position"
        ):
            found.setdefault(table, {})[column] = kind
        return found

    def all_rows(self) -> dict[str, list[Row]]:
        """Give the rows of every table, without the columns that are null."""
        tables = self.tables()
        with self._connect() as connection:
            return {
                table: [
                    {
                        name: cell
                        for name, cell in zip(columns, row, strict=True)
                        if cell is not None
                    }
                    for row in connection.execute(f'SELECT * FROM "{table}"').fetchall()
                ]
                for table, columns in tables.items()
            }

    def rows(self, table: str) -> list[Row]:
        return self.all_rows()[table]

    def counts(self) -> dict[str, int]:
        """Count the rows of each table that has any."""
        return {table: len(rows) for table, rows in self.all_rows().items() if rows}

    def content(self) -> dict[str, str]:
        """Give a digest of all rows of each payload table, its load ids left out."""
        return {
            table: _digest([_without_load(row) for row in rows])
            for table, rows in self.all_rows().items()
            if rows and table not in ("deliveries", "loads")
        }

    def orphans(self) -> dict[str, int]:
        """Count, by table, the rows of loads that dlt does not list as complete, once."""
        complete = self.query(
            "SELECT load_id FROM _dlt_loads WHERE status = 0 GROUP BY 1 HAVING count(*) = 1"
        )
        ids = {load_id for (load_id,) in complete}
        counts = {
            table: sum(row["_dlt_load_id"] not in ids for row in rows)
            for table, rows in self.all_rows().items()
        }
        return {table: count for table, count in counts.items() if count}

    def outcomes(self) -> list[tuple]:
        return self.query(
            "SELECT segment, line, event_id, outcome FROM deliveries ORDER BY segment, line"
        )


def _without_load(row: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in row.items() if name not in LOAD_COLUMNS}


def _digest(rows: list[dict[str, object]]) -> str:
    text = "\n".join(sorted(repr(sorted(row.items())) for row in rows))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def decisions(*deliveries: Sent) -> list[Decision]:
    """Make decisions to load, as `take.decide` would."""
    return [
        Decision(
            line=TakenLine(
                segment="segment",
                number=number,
                event_id=event_id,
                sent_at_s=SENT_AT_S,
                received_at=RECEIVED_AT,
                body=body,
                sha256=hashlib.sha256(body).hexdigest(),
                is_object=True,
            ),
            outcome=Outcome.LOADED,
        )
        for number, (event_id, body) in enumerate(deliveries)
    ]


def build(*deliveries: Sent, types: ColumnTypes | None = None) -> list[NamedTable]:
    """Build the Arrow tables of these events, without a warehouse."""
    new = decisions(*deliveries)
    with closing(Flattener()) as flattener:
        blocks = [*flattener.submit(decision.line for decision in new)]
        return list(TableBuilder(types or ColumnTypes()).build(new, blocks))


def rows_of(tables: Iterable[NamedTable]) -> dict[str, list[Row]]:
    """Read Arrow tables as rows without their nulls, by table name."""
    rows: dict[str, list[Row]] = {}
    for name, table in tables:
        rows.setdefault(name, []).extend(_rows(table))
    return rows


def _rows(table: pa.Table) -> list[Row]:
    return [
        {name: _plain(value) for name, value in row.items() if value is not None}
        for row in table.to_pylist()
    ]


def _plain(value: object) -> object:
    # pyarrow's time zones are equal to Python's only by their instants.
    return value.timestamp() if isinstance(value, datetime) else value


def multiset(rows: Iterable[Row]) -> Counter[str]:
    return Counter(repr(sorted(row.items())) for row in rows)
