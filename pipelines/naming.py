"""Name the table and the column of every path in an event.

A name is a function of the path alone, so the same spool builds the same warehouse on any
machine; only where two keys of one object are spelled alike, or a value has another type than
its column, is a second name derived from the first. dlt's snake_case convention decides how a key
is spelled; at 63 characters a name is the same on DuckDB, PostgreSQL, BigQuery and
Snowflake. A path is a tuple of the keys as sent, from the record (the event, or an
array's element) down to the value.
"""

from __future__ import annotations

import zlib
from functools import lru_cache

from dlt.common.normalizers.naming.snake_case import NamingConvention

from pipelines import schema
from pipelines.schema import Kind, Node

Path = tuple[str, ...]

MAX_NAME_LENGTH = 63
SCALAR_COLUMN = "value"  # of an array whose elements are not objects
NESTED_ARRAY = "list"  # of an array directly inside an array

_CONVENTION = NamingConvention()
_HEAD_LENGTH = _TAIL_LENGTH = 26  # the tag between them has 8, and an underscore each side
# Where the values go that no column or table may be added for: a JSON object by path.
OVERFLOW_COLUMN = "payload__overflow"
_OWN_COLUMNS = {
    *schema.CONTEXT_COLUMNS,
    *schema.CHILD_KEYS,
    "_dlt_load_id",
    OVERFLOW_COLUMN,
}


@lru_cache(maxsize=65536)
def column_name(table: str, path: Path) -> str:
    """Name the column that holds the value at `path` of one row of `table`."""
    short = strip_wrappers(path) if table == schema.ROOT_TABLE else path
    name = spell(short)
    if name in _OWN_COLUMNS or name.startswith("_dlt"):
        # A payload's own `_dlt_id` or `event_id` must not pass for ours.
        return spell(("payload", *short))
    if table == schema.ROOT_TABLE and _DECLARED_ROOT_PATHS.get(name, path) != path:
        # Another path's declared column, `type` for `data.type` or `Type`, is not for this one.
        return spell(path) if short != path else spell(("payload", *path))
    return name


@lru_cache(maxsize=4096)
def table_name(parent: str, path: Path) -> str:
    """Name the child table of the array at `path` of one row of `parent`."""
    if parent != schema.ROOT_TABLE:
        # The parent is spelled already; as one key it would lose its double underscores.
        return _shorten(f"{parent}__{spell(path)}")
    return schema.ARRAY_TABLES.get(path) or spell((parent, *strip_wrappers(path)))


def variant_name(column: str, data_type: str) -> str:
    """Name the column beside `column` for values of another type, as dlt names it."""
    return _shorten(f"{column}__v_{data_type}")


def collision_name(column: str, path: Path) -> str:
    """Name a column apart when two keys of one object are spelled the same."""
    tag = zlib.crc32("\x1f".join(path).encode("utf-8", "surrogatepass"))
    return _shorten(f"{column}__as_{tag:08x}")


def strip_wrappers(path: Path) -> Path:
    for wrapper in schema.WRAPPERS:
        if path[: len(wrapper)] == wrapper and len(path) > len(wrapper):
            return path[len(wrapper) :]
    return path


@lru_cache(maxsize=65536)
def spell(path: Path) -> str:
    """Spell a path as one identifier; a key without any letter or digit is spelled `x`."""
    parts = [
        _CONVENTION.normalize_identifier(key) if key.strip().strip("_") else "x" for key in path
    ]
    return _shorten("__".join(parts))


def _shorten(name: str) -> str:
    """Bring a spelled name to 63 characters: its head, a tag of the whole, its tail.

    dlt's own shortening may cut after a double underscore, so that a piece begins with a
    digit, which dlt then spells with one more underscore: the name is too long again, and
    so for ever. Here no piece of a name begins or ends at a cut.
    """
    if len(name) <= MAX_NAME_LENGTH:
        return name
    tag = f"{zlib.crc32(name.encode()):08x}"
    head, tail = name[:_HEAD_LENGTH].rstrip("_"), name[-_TAIL_LENGTH:].lstrip("_")
    return f"{head}_{tag}_{tail}"


def leaves(node: Node, prefix: Path = ()) -> list[tuple[Path, Kind | list[Node]]]:
    """List the columns (kinds) and arrays of one declared record, with their paths."""
    if isinstance(node, dict):
        return [leaf for key, child in node.items() for leaf in leaves(child, (*prefix, key))]
    return [(prefix, node)]


_DECLARED_ROOT_PATHS: dict[str, Path] = {
    spell(strip_wrappers(path)): path
    for path, node in leaves(schema.EVENT)
    if isinstance(node, Kind)
}


def declared_tables() -> dict[str, dict[str, Kind]]:
    """Derive every warehouse table with its columns, own columns first.

    The tables are in the order of the document, parents before their children.
    """
    tables: dict[str, dict[str, Kind]] = {}
    _declare(schema.ROOT_TABLE, schema.EVENT, schema.ROOT_KEYS, tables)
    tables[schema.DELIVERIES_TABLE] = dict(schema.DELIVERIES)
    tables[schema.LOADS_TABLE] = dict(schema.LOADS)
    return tables


def _declare(
    table: str, record: Node, keys: dict[str, Kind], tables: dict[str, dict[str, Kind]]
) -> None:
    columns = tables.setdefault(table, keys | schema.CONTEXT_COLUMNS)
    for path, node in leaves(record):
        if isinstance(node, Kind):
            columns[column_name(table, path or (SCALAR_COLUMN,))] = node
        elif isinstance(node, list):
            _declare(table_name(table, path), node[0], schema.CHILD_KEYS, tables)
