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
_CONTEXT = {
    "event_id": "id",
    "event_type": "type",
    "session_id": "coalesce(data.session.sid, data.attribution.sessionId)",
    "visitor_id": "coalesce(data.session.vid, data.attribution.vid)",
    "occurred_at": "make_timestamptz(created * 1000)",
}


def statements(events: Path) -> Iterator[str]:
    """Yield the statements that load a file of bodies, one a line."""
    columns = ", ".join(f"{key}: '{_sql_type(node)}'" for key, node in schema.EVENT.items())
    yield (
        f"CREATE TEMP TABLE raw AS SELECT * FROM read_json('{events}', "
        f"format = 'newline_delimited', columns = {{{columns}}})"
    )
    context = ", ".join(f"{value} AS {name}" for name, value in _CONTEXT.items())
    yield from _fill(schema.ROOT_TABLE, schema.EVENT, f"SELECT {context}, raw AS item FROM raw")


def _fill(table: str, record: Node, items: str) -> Iterator[str]:
    """Fill a table from a query that gives the context and one `item` a row."""
    columns = list(_CONTEXT)
    children = []
    for path, node in leaves(record):
        value = ".".join(["item", *(f'"{key}"' for key in path)])
        if isinstance(node, list):
            inner = f"SELECT {', '.join(_CONTEXT)}, unnest({value}) AS item FROM ({items})"
            children.append((table_name(table, path), node[0], inner))
        else:
            name = column_name(table, path or (SCALAR_COLUMN,))
            columns.append(f'{_cast(value, node)} AS "{name}"')
    select = f"SELECT {', '.join(columns)} FROM ({items})"
    yield f'CREATE TABLE IF NOT EXISTS "{table}" AS {select} LIMIT 0'
    yield f'INSERT INTO "{table}" {select}'
    for name, node, inner in children:
        yield from _fill(name, node, inner)


def _cast(value: str, node: Node) -> str:
    return f"make_timestamptz({value} * 1000)" if node is Kind.EPOCH_MS else value


def _sql_type(node: Node) -> str:
    if isinstance(node, Kind):
        return _SQL_TYPES[node]
    if isinstance(node, list):
        return f"{_sql_type(node[0])}[]"
    fields = ", ".join(f'"{key}" {_sql_type(child)}' for key, child in node.items())
    return f"STRUCT({fields})"
