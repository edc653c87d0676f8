"""What a person would write with DuckDB alone: `read_json` into one nested table, then
one `INSERT … SELECT … unnest` for each of the warehouse's tables.

The statements are derived from the same declaration as our tables, so that both ways
fill the same columns; they check nothing, deduplicate nothing and keep no state.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipelines import schema
from pipelines.naming import SCALAR_COLUMN, column_name, leaves, table_name
from pipelines.schema import Kind, Node

_SQL_TYPES = {
    Kind.TEXT: "VARCHAR",
    Kind.ISO_TIME: "TIMESTAMPTZ",
    Kind.BIGINT: "BIGINT",
    Kind.EPOCH_MS: "BIGINT",
    Kind.DOUBLE: "DOUBLE",
    Kind.BOOL: "BOOLEAN",
    Kind.JSON: "JSON",
}
_CONTEXT = """raw.id AS event_id, raw.type AS event_type,
    coalesce(raw.data.session.sid, raw.data.attribution.sessionId) AS session_id,
    coalesce(raw.data.session.vid, raw.data.attribution.vid) AS visitor_id,
    make_timestamptz(raw.created * 1000) AS occurred_at"""


def statements(events: Path) -> Iterator[str]:
    """Yield the statements that load a file of bodies, one a line."""
    columns = ", ".join(f"{key}: '{_sql_type(node)}'" for key, node in schema.EVENT.items())
    yield (
        f"CREATE TEMP TABLE raw AS SELECT * FROM read_json('{events}', "
        f"format = 'newline_delimited', columns = {{{columns}}})"
    )
    yield from _fill(schema.ROOT_TABLE, schema.EVENT, "raw", "raw")


def _fill(table: str, record: Node, row: str, source: str) -> Iterator[str]:
    parts = [_CONTEXT]
    children = []
    for path, node in leaves(record):
        value = ".".join([row, *(f'"{key}"' for key in path)])
        if isinstance(node, list):
            name = table_name(table, path)
            item = f"item_{len(source)}"
            inner = f"{source}, unnest({value}) AS {item}_t({item})"
            children.append((name, node[0], item, inner))
        else:
            parts.append(
                f'{_cast(value, node)} AS "{column_name(table, path or (SCALAR_COLUMN,))}"'
            )
    select = f"SELECT {', '.join(parts)} FROM {source}"
    yield f'CREATE TABLE IF NOT EXISTS "{table}" AS {select} LIMIT 0'
    yield f'INSERT INTO "{table}" {select}'
    for name, node, item, inner in children:
        yield from _fill(name, node, item, inner)


def _cast(value: str, node: Node) -> str:
    return f"make_timestamptz({value} * 1000)" if node is Kind.EPOCH_MS else value


def _sql_type(node: Node) -> str:
    if isinstance(node, Kind):
        return _SQL_TYPES[node]
    if isinstance(node, list):
        return f"{_sql_type(node[0])}[]"
    fields = ", ".join(f'"{key}" {_sql_type(child)}' for key, child in node.items())
    return f"STRUCT({fields})"
