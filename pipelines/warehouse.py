"""Ask and mend the warehouse: what it holds, what an unfinished load left, what arrived.

Everything is plain SQL through dlt's own client, so it works on every SQL destination.
A load announces itself in `loads` before it writes rows, and is `done` only after its
rows were counted. What is announced and not done is the leftover of a crash: its rows
carry its load id, and are deleted before anything else is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeAlias

import dlt
from dlt.common.destination import TLoaderFileFormat
from dlt.common.destination.client import StorageSchemaInfo, WithStateSync
from dlt.common.schema import Schema
from dlt.common.schema.typing import (
    C_DLT_LOAD_ID,
    LOADS_TABLE_NAME,
    PIPELINE_STATE_TABLE_NAME,
    VERSION_TABLE_NAME,
)
from dlt.destinations.exceptions import DatabaseUndefinedRelation
from dlt.destinations.sql_client import SqlClientBase

from pipelines import schema
from pipelines.destination import DUCKDB_JOINING, FILE_FORMATS, database_file, open_pipeline
from pipelines.schema import Outcome
from pipelines.take import Holdings

SCHEMA_NAME = "midbound"  # dlt names it after the source
# Names in one query: below what any destination takes as one statement.
NAMES_PER_QUERY = 5000
# So many small row groups may lie in a table beside the large ones.
LOADS_PER_JOINING = 16

SqlValue: TypeAlias = object
StoredTypes: TypeAlias = dict[str, dict[str, str]]  # table, column, data type
SqlClient: TypeAlias = SqlClientBase[object]


@contextmanager
def open_to_read() -> Iterator[Warehouse | None]:
    """Open the warehouse for questions only; None if no load has made one yet."""
    file = database_file()
    if file is not None and not file.exists():  # to connect would make it
        yield None
        return
    with TemporaryDirectory(prefix="midbound-") as working_directory:
        warehouse = Warehouse(open_pipeline(Path(working_directory)))
        warehouse.sync()
        yield warehouse if warehouse.stored_types() else None


class Warehouse:
    """The destination behind a pipeline, as the load and its readers need it."""

    def __init__(self, pipeline: dlt.Pipeline) -> None:
        self.pipeline = pipeline

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Keep a DuckDB file open, and so ours, while one connection after the other uses it.

        Opening and closing it each time would write it out each time, and let others in between.
        """
        if self._kind != "duckdb":
            yield
            return
        with self.pipeline.sql_client():
            yield

    @property
    def _kind(self) -> str:
        return self.pipeline.destination.destination_type.rpartition(".")[2]

    @property
    def file_format(self) -> TLoaderFileFormat | None:
        """The format of the files that dlt loads: what the destination prefers.

        Left to itself dlt would take what is written fastest from Arrow: csv on PostgreSQL,
        whose COPY turns every empty text into NULL, and parquet on BigQuery, which refuses it
        where a table has a JSON column.
        """
        capabilities = self.pipeline.destination.capabilities()
        return FILE_FORMATS.get(self._kind) or capabilities.preferred_loader_file_format

    def sync(self) -> None:
        """Take schema and state back from the destination."""
        self.pipeline.sync_destination()
        self._restore_newest_schema()

    def _restore_newest_schema(self) -> None:
        """Take back the schema with the highest version, which grows with every change.

        dlt takes the one that was stored last by the loader's clock, and only under completed
        loads. After a clock that went back, or a first load that never completed, nothing would
        tell which tables hold the rows to be purged.
        """
        stored = self._newest_schema()
        if stored is not None and stored.version_hash not in self._known_hashes():
            self.pipeline.schemas.save_schema(Schema.from_dict(json.loads(stored.schema)))
            # Typed by dlt as what it is at first.
            self.pipeline.default_schema_name = SCHEMA_NAME  # type: ignore[assignment]

    def _known_hashes(self) -> list[str]:
        return [schema.version_hash for schema in self.pipeline.schemas.values()]

    def _newest_schema(self) -> StorageSchemaInfo | None:
        with self.connect() as client:
            versions = client.make_qualified_table_name(VERSION_TABLE_NAME)
            found = _try_select(
                client,
                f"SELECT version_hash FROM {versions} WHERE schema_name = %s "
                "ORDER BY version DESC LIMIT 1",
                SCHEMA_NAME,
            )
        if not found:
            return None  # a new warehouse
        with self.pipeline.destination_client() as destination:
            if not isinstance(destination, WithStateSync):
                return None
            return destination.get_stored_schema_by_hash(str(found[0][0]))

    def stored_types(self) -> StoredTypes:
        """Give the data type of each column that earlier loads have created."""
        if not self.pipeline.default_schema_name:
            return {}
        tables = self.pipeline.default_schema.tables
        return {
            name: {
                column: hints["data_type"]
                for column, hints in table["columns"].items()
                if "data_type" in hints
            }
            for name, table in tables.items()
            if not name.startswith("_dlt")
        }

    def holdings(self, event_ids: Sequence[str], segments: Sequence[str]) -> Holdings:
        """Ask which of these events and segments a completed load has brought."""
        with self.connect() as client:
            events = _select_where_in(
                client,
                "event_id, body_sha256",
                "event_id",
                event_ids,
                f"outcome = '{Outcome.LOADED}'",
            )
            lines = _select_where_in(client, "segment, line", "segment", segments)
        return Holdings(
            event_sha256={str(event_id): str(sha256) for event_id, sha256 in events},
            lines=frozenset((str(segment), int(str(line))) for segment, line in lines),
        )

    def unfinished_loads(self) -> list[str]:
        """List the loads that were announced but never done, oldest first."""
        with self.connect() as client:
            loads = client.make_qualified_table_name(schema.LOADS_TABLE)
            rows = _try_select(
                client, f"SELECT load_id FROM {loads} WHERE status = 'started' ORDER BY load_id"
            )
        return [str(load_id) for (load_id,) in rows]

    def purge(self, load_id: str) -> None:
        """Delete every row of a load. Safe to repeat, and to stop anywhere.

        First goes the claim that the load is complete, last the note that it must be purged.
        """
        tables = [table for table in self.stored_types() if table != schema.LOADS_TABLE]
        with self.connect() as client:
            _delete(client, LOADS_TABLE_NAME, "load_id", load_id)
            for table in [*tables, PIPELINE_STATE_TABLE_NAME, schema.LOADS_TABLE]:
                _delete(client, table, C_DLT_LOAD_ID, load_id)

    def announce(self, load_id: str, values: Mapping[str, SqlValue]) -> None:
        """Write the load's row in `loads`, as started."""
        row = {"load_id": load_id, C_DLT_LOAD_ID: load_id, "status": "started", **values}
        with self.connect() as client:
            loads = client.make_qualified_table_name(schema.LOADS_TABLE)
            columns = ", ".join(client.escape_column_name(name) for name in row)
            marks = ", ".join(["%s"] * len(row))
            client.execute_sql(f"INSERT INTO {loads} ({columns}) VALUES ({marks})", *row.values())

    def finish(self, load_id: str, values: Mapping[str, SqlValue]) -> None:
        """Complete the load's row in `loads`, as done."""
        row = {"status": "done", **values}
        with self.connect() as client:
            loads = client.make_qualified_table_name(schema.LOADS_TABLE)
            settings = ", ".join(f"{client.escape_column_name(name)} = %s" for name in row)
            client.execute_sql(
                f"UPDATE {loads} SET {settings} WHERE load_id = %s", *row.values(), load_id
            )

    def join_row_groups(self) -> None:
        """After each so many loads let DuckDB join what they have left.

        It does so as it closes, so this is for the end of a `hold`.
        """
        if self._kind != "duckdb":
            return
        with self.connect() as client:
            loads = client.make_qualified_table_name(schema.LOADS_TABLE)
            ((count,),) = client.execute_sql(f"SELECT count(*) FROM {loads}") or [(0,)]
            if int(count) % LOADS_PER_JOINING == 0:
                for statement in DUCKDB_JOINING:
                    client.execute_sql(statement)

    def count_rows(self, load_id: str, tables: Sequence[str]) -> dict[str, int]:
        """Count the rows that a load has brought to each of these tables."""
        with self.connect() as client:
            query = " UNION ALL ".join(
                f"SELECT '{table}', count(*) FROM {client.make_qualified_table_name(table)} "
                f"WHERE {client.escape_column_name(C_DLT_LOAD_ID)} = %s"
                for table in tables
            )
            rows = client.execute_sql(query, *[load_id] * len(tables)) or []
        return {str(table): int(count) for table, count in rows}

    def select(
        self,
        table: str,
        columns: Sequence[str],
        *,
        where: Mapping[str, SqlValue] | None = None,
        newest_by: str | None = None,
        limit: int | None = None,
    ) -> list[dict[str, object]]:
        """Read rows of one table, for people; a table that does not exist yet has none."""
        conditions = where or {}
        with self.connect() as client:
            name = client.escape_column_name
            query = (
                f"SELECT {', '.join(map(name, columns))} "
                f"FROM {client.make_qualified_table_name(table)}"
            )
            if conditions:
                query += " WHERE " + " AND ".join(f"{name(column)} = %s" for column in conditions)
            if newest_by is not None:
                query += f" ORDER BY {name(newest_by)} DESC"
            if limit is not None:
                query += f" LIMIT {limit}"
            rows = _try_select(client, query, *conditions.values())
        return [dict(zip(columns, row, strict=True)) for row in rows]

    def count_all(self, where: Mapping[str, SqlValue] | None = None) -> dict[str, int]:
        """Count the rows of every table, or those that a condition picks."""
        conditions = where or {}
        counts: dict[str, int] = {}
        with self.connect() as client:
            picked = " AND ".join(
                f"{client.escape_column_name(column)} = %s" for column in conditions
            )
            for table, columns in self.stored_types().items():
                if conditions.keys() <= columns.keys():
                    query = f"SELECT count(*) FROM {client.make_qualified_table_name(table)}"
                    query += f" WHERE {picked}" if picked else ""
                    for (count,) in _try_select(client, query, *conditions.values()):
                        counts[table] = int(str(count))
        return counts

    def is_done(self, load_id: str) -> bool:
        """Tell whether the load is done, and dlt lists it as complete."""
        loads = self.select(schema.LOADS_TABLE, ["status"], where={"load_id": load_id})
        return loads == [{"status": "done"}] and self.is_complete(load_id)

    def is_complete(self, load_id: str) -> bool:
        """Tell whether dlt lists the load as complete, once."""
        with self.connect() as client:
            loads = client.make_qualified_table_name(LOADS_TABLE_NAME)
            query = f"SELECT count(*) FROM {loads} WHERE load_id = %s AND status = 0"
            ((count,),) = client.execute_sql(query, load_id) or [(0,)]
        return bool(count == 1)

    @contextmanager
    def connect(self) -> Iterator[SqlClient]:
        with self.pipeline.sql_client() as client:
            yield client


def _select_where_in(
    client: SqlClient, columns: str, column: str, names: Sequence[str], condition: str = "1 = 1"
) -> list[tuple[object, ...]]:
    """Select from `deliveries` what completed loads have brought under these names."""
    deliveries = client.make_qualified_table_name(schema.DELIVERIES_TABLE)
    dlt_loads = client.make_qualified_table_name(LOADS_TABLE_NAME)
    found: list[tuple[object, ...]] = []
    # As literals: DuckDB's client takes 0.2 ms for each parameter that it binds. But dlt knows
    # no literals of some destinations, Snowflake among them.
    escape: Callable[[str], str] | None = client.capabilities.escape_literal
    for start in range(0, len(names), NAMES_PER_QUERY):
        chunk = names[start : start + NAMES_PER_QUERY]
        marks = [escape(name) for name in chunk] if escape else ["%s"] * len(chunk)
        found += _try_select(
            client,
            f"SELECT {columns} FROM {deliveries} WHERE {column} IN ({', '.join(marks)}) "
            f"AND {condition} AND {client.escape_column_name(C_DLT_LOAD_ID)} IN "
            f"(SELECT load_id FROM {dlt_loads} WHERE status = 0)",
            *(() if escape else chunk),
        )
    return found


def _try_select(client: SqlClient, query: str, *values: SqlValue) -> list[tuple[object, ...]]:
    """Run a query; a table that no load has created yet holds nothing."""
    try:
        return [tuple(row) for row in client.execute_sql(query, *values) or []]
    except DatabaseUndefinedRelation:
        return []


def _delete(client: SqlClient, table: str, column: str, value: str) -> None:
    name = client.make_qualified_table_name(table)
    try:
        client.execute_sql(
            f"DELETE FROM {name} WHERE {client.escape_column_name(column)} = %s", value
        )
    except DatabaseUndefinedRelation:
        return  # the load was stopped before this table was created
