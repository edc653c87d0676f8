"""Flatten, value by value, the events that do not fit the declared types.

The same tables, names and keys as `flatten` makes, from plain Python values: slower,
but with an answer to every value that JSON can spell. A value of the wrong type goes
into a variant, a key that is spelled like another into a column of its own, what is
nested too deeply or has no room stays JSON text. Only a body that is not a JSON object
is set aside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

import numpy as np
import pyarrow as pa

from pipelines import schema
from pipelines.bodies import free_name, json_text, storable
from pipelines.columns import ARROW_TYPES, EXACT_INTEGERS, ColumnTypes
from pipelines.flatten import Context, FlatTable, encode_context
from pipelines.json_types import Json
from pipelines.keys import RowKeys, child_keys, root_keys
from pipelines.naming import (
    NESTED_ARRAY,
    OVERFLOW_COLUMN,
    SCALAR_COLUMN,
    Path,
    collision_name,
    column_name,
    table_name,
)
from pipelines.parse import MAX_DEPTH
from pipelines.schema import Kind, Node

Value: TypeAlias = bool | int | float | str | datetime

INT64 = range(-(2**63), 2**63)
# Instants that every destination holds: the years 1 to 9999.
MIN_EPOCH_MS = -62_135_596_800_000
MAX_EPOCH_MS = 253_402_300_799_999


@dataclass(slots=True)
class _Group:
    """The rows of one array of the document, over all odd events.

    `steps` is its path, cut at the arrays on the way down: where a list stands for an
    object, the same path is cut elsewhere, and its rows have other parents.
    """

    table: str
    path: Path
    steps: tuple[Path, ...]
    parent: _Group | None
    rows: list[dict[str, Value]] = field(default_factory=list)
    events: list[int] = field(default_factory=list)
    parent_rows: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    overflow: dict[int, dict[str, Json]] = field(default_factory=dict)

    def add_row(self, event: int, parent_row: int, position: int) -> dict[str, Value]:
        row: dict[str, Value] = {}
        self.rows.append(row)
        self.events.append(event)
        self.parent_rows.append(parent_row)
        self.positions.append(position)
        return row


@dataclass(frozen=True, slots=True)
class _Spot:
    """Where a value goes: the row of the group under construction."""

    group: _Group
    row: dict[str, Value]
    row_number: int


class OddFlattener:
    """Flatten read bodies into rows, asking `types` where each value goes."""

    def __init__(self, types: ColumnTypes) -> None:
        self._types = types
        self._groups: dict[tuple[Path, ...], _Group] = {}
        self._event = 0

    def flatten(self, documents: Sequence[dict[str, Json]], context: Context) -> list[FlatTable]:
        """Flatten the documents; `context` has one entry for each of them."""
        root = _Group(schema.ROOT_TABLE, (), (), None)
        self._groups = {(): root}
        for self._event, document in enumerate(documents):
            row = root.add_row(self._event, -1, -1)
            self._walk(_Spot(root, row, self._event), schema.EVENT, document, ())
        shared = encode_context(_context_columns(documents, root.rows, context))
        keys: dict[tuple[Path, ...], RowKeys] = {}
        return [self._to_table(group, keys, context, shared) for group in self._groups.values()]

    def _walk(self, spot: _Spot, node: Node | None, value: Json, path: Path) -> None:
        if node is Kind.JSON:
            if value is not None:
                self._put(spot, path, "json", json_text(value))
        elif isinstance(value, dict):
            self._walk_object(spot, node, value, path)
        elif isinstance(value, list):
            self._walk_array(spot, node, value, path)
        elif value is not None:
            kind = node if isinstance(node, Kind) else None
            self._put(spot, path or (SCALAR_COLUMN,), *convert(value, kind))

    def _walk_object(
        self, spot: _Spot, node: Node | None, value: dict[str, Json], path: Path
    ) -> None:
        if value and len(spot.group.path) + len(path) >= MAX_DEPTH:
            self._put(spot, path or (SCALAR_COLUMN,), "json", json_text(value))
            return
        children = node if isinstance(node, dict) else {}
        # Declared keys first, so that no other spelling of one takes its column.
        for key in sorted(value, key=lambda key: key not in children):
            self._walk(spot, children.get(key), value[key], (*path, key))

    def _walk_array(self, spot: _Spot, node: Node | None, value: list[Json], path: Path) -> None:
        local = path or (NESTED_ARRAY,)
        full_path = (*spot.group.path, *local)
        if not value:
            return
        table = table_name(spot.group.table, local)
        if len(full_path) >= MAX_DEPTH or not self._types.try_table(table):
            self._put(spot, local, "json", json_text(value))
            return
        steps = (*spot.group.steps, local)
        group = self._groups.setdefault(steps, _Group(table, full_path, steps, spot.group))
        element_node = node[0] if isinstance(node, list) else None
        for position, element in enumerate(value):
            row = group.add_row(self._event, spot.row_number, position)
            self._walk(_Spot(group, row, len(group.rows) - 1), element_node, element, ())

    def _put(self, spot: _Spot, path: Path, data_type: str, value: Value) -> None:
        table, row = spot.group.table, spot.row
        column = column_name(table, path)
        if type(value) is int and self._types.data_type(table, column) == "double":
            data_type, value = _convert_number(value, Kind.DOUBLE)
        name = self._types.try_place(table, column, data_type)
        if name in row:
            name = self._types.try_place(table, collision_name(name, path), data_type)
        if name is None:
            self._overflow(spot, path, value)
        else:
            row[name] = value

    def _overflow(self, spot: _Spot, path: Path, value: Value) -> None:
        kept = spot.group.overflow.setdefault(spot.row_number, {})
        name = free_name(".".join(path), kept)
        kept[name] = value if not isinstance(value, datetime) else value.isoformat()

    def _to_table(
        self,
        group: _Group,
        keys: dict[tuple[Path, ...], RowKeys],
        context: Context,
        shared: dict[str, pa.Array],
    ) -> FlatTable:
        columns: dict[str, pa.Array] = {}
        if group.parent is None:
            keys[group.steps] = root_keys(context.event_ids.to_pylist())
        else:
            parents = keys[group.parent.steps].take(np.array(group.parent_rows, dtype=np.int64))
            positions = np.array(group.positions, dtype=np.int64)
            keys[group.steps] = child_keys(parents, group.path, positions)
            columns["_dlt_parent_id"] = parents.to_arrow()
            columns["_dlt_list_idx"] = pa.array(positions)
        columns["_dlt_id"] = keys[group.steps].to_arrow()
        events = pa.array(group.events, type=pa.int64())
        columns |= {name: array.take(events) for name, array in shared.items()}
        columns |= self._payload_columns(group)
        return FlatTable(name=group.table, columns=columns, declared=frozenset(columns))

    def _payload_columns(self, group: _Group) -> dict[str, pa.Array]:
        for row_number, kept in group.overflow.items():
            self._types.try_place(group.table, OVERFLOW_COLUMN, "json")
            group.rows[row_number][OVERFLOW_COLUMN] = json_text(kept)
        names = dict.fromkeys(name for row in group.rows for name in row)
        return {
            name: pa.array(
                [row.get(name) for row in group.rows],
                type=ARROW_TYPES[self._types.data_type(group.table, name) or "text"],
            )
            for name in names
        }


def convert(value: bool | int | float | str, kind: Kind | None) -> tuple[str, Value]:
    """Bring a scalar to its declared type if that loses nothing, else keep its own.

    Gives the data type and the value; the column is the caller's business.
    """
    if isinstance(value, str):
        instant = try_instant(value) if kind in (Kind.EPOCH_MS, Kind.ISO_TIME) else None
        return ("timestamp", instant) if instant else ("text", storable(value))
    if isinstance(value, bool):
        return "bool", value
    return _convert_number(value, kind)


def _convert_number(value: int | float, kind: Kind | None) -> tuple[str, Value]:
    is_exact = abs(value) < EXACT_INTEGERS
    if kind is Kind.EPOCH_MS and MIN_EPOCH_MS <= value <= MAX_EPOCH_MS:
        return "timestamp", _EPOCH + _MICROSECOND * round(value * 1000)
    if kind is Kind.DOUBLE and is_exact:
        return "double", float(value)
    if kind is Kind.BIGINT and is_exact and float(value).is_integer():
        return "bigint", int(value)
    if isinstance(value, int):
        return ("bigint", value) if value in INT64 else ("text", str(value))
    return "double", value


def try_instant(text: str) -> datetime | None:
    """Read an ISO 8601 instant with its offset; None for anything less certain."""
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        return None
    try:
        return instant.astimezone(UTC) if instant.tzinfo else None
    except OverflowError:
        return None


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def _context_columns(
    documents: Sequence[Mapping[str, Json]], rows: Sequence[Mapping[str, Value]], context: Context
) -> dict[str, pa.Array]:
    def texts(*paths: Path) -> pa.Array:
        return pa.array([_first_text(document, paths) for document in documents], pa.string())

    created = [row.get("created") for row in rows]
    return {
        "event_id": context.event_ids,
        "event_type": texts(("type",)),
        "session_id": texts(*schema.SESSION_ID_PATHS),
        "visitor_id": texts(*schema.VISITOR_ID_PATHS),
        "occurred_at": pa.array(created, ARROW_TYPES["timestamp"]),
        "received_at": context.received_at,
    }


def _first_text(document: Mapping[str, Json], paths: tuple[Path, ...]) -> str | None:
    for path in paths:
        value: Json = dict(document)
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        if isinstance(value, str):
            return storable(value)
    return None
