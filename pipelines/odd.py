"""Flatten, value by value, the events that do not fit the declared types.

The same tables, names and keys as `flatten` makes, from plain Python values: slower,
but with an answer to every value that JSON can spell. A value of the wrong type goes
into a variant, a key that is spelled like another into a column of its own, what is
nested too deeply or has no room stays JSON text. Only a body that is not a JSON object
is set aside.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa

from pipelines import schema
from pipelines.bodies import free_name, json_text, storable
from pipelines.columns import (
    ARROW_TYPES,
    EXACT_INTEGERS,
    MAX_EPOCH_MS,
    MIN_EPOCH_MS,
    ColumnTypes,
)
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
# Below each object, and in all; a payload with more keys than that is slower to load.
MAX_PLACES = 2000


@dataclass(slots=True)
class _Place:
    """A place within one record: what is declared there, and where its values go.

    Places are kept from event to event, since names take long to make.
    """

    table: str
    path: Path
    node: Node | None
    depth: int  # of keys, from the event
    column: str = field(init=False)
    kind: Kind | None = field(init=False)
    declared: Mapping[str, Node] = field(init=False)
    children: dict[str, _Place] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.column = column_name(self.table, self.path or (SCALAR_COLUMN,))
        self.kind = self.node if isinstance(self.node, Kind) else None
        self.declared = self.node if isinstance(self.node, dict) else {}

    def child(self, key: str) -> _Place:
        place = self.children.get(key)
        if place is None:
            node = self.declared.get(key)
            place = _Place(self.table, (*self.path, key), node, self.depth + 1)
            if len(self.children) < MAX_PLACES:
                self.children[key] = place
        return place


@dataclass(slots=True)
class _Group:
    """The rows of one array of the document, over all odd events.

    `steps` is its path, cut at the arrays on the way down: where a list stands for an
    object, the same path is cut elsewhere, and its rows have other parents.
    """

    place: _Place  # of an element
    path: Path
    steps: tuple[Path, ...]
    parent: _Group | None
    types: Mapping[str, str]  # of the table's columns, as they are at any time
    rows: list[dict[str, Value]] = field(default_factory=list)
    events: list[int] = field(default_factory=list)
    parent_rows: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    overflow: dict[int, dict[str, Json]] = field(default_factory=dict)

    @property
    def table(self) -> str:
        return self.place.table

    def add_row(self, event: int, parent_row: int, position: int) -> _Spot:
        row: dict[str, Value] = {}
        self.rows.append(row)
        self.events.append(event)
        self.parent_rows.append(parent_row)
        self.positions.append(position)
        return _Spot(self, row, len(self.rows) - 1)


class _Spot(NamedTuple):
    """The row of a group that is under construction."""

    group: _Group
    row: dict[str, Value]
    row_number: int


class OddFlattener:
    """Flatten read bodies into rows, asking `types` where each value goes."""

    def __init__(self, types: ColumnTypes) -> None:
        self._types = types
        self._places: dict[tuple[Path, ...], _Place] = {}
        self._groups: dict[tuple[Path, ...], _Group] = {}
        self._event = 0

    def flatten(self, documents: Sequence[dict[str, Json]], context: Context) -> list[FlatTable]:
        """Flatten the documents; `context` has one entry for each of them."""
        self._groups = {}
        root = self._group((), None, schema.ROOT_TABLE, schema.EVENT)
        for self._event, document in enumerate(documents):
            self._walk_object(root.add_row(self._event, -1, -1), root.place, document)
        shared = encode_context(_context_columns(documents, root.rows, context))
        keys: dict[tuple[Path, ...], RowKeys] = {}
        return [self._to_table(group, keys, context, shared) for group in self._groups.values()]

    def _group(
        self, steps: tuple[Path, ...], parent: _Group | None, table: str, node: Node | None
    ) -> _Group:
        if steps not in self._groups:
            path = tuple(key for step in steps for key in step)
            place = self._places.get(steps) or _Place(table, (), node, len(path))
            if len(self._places) < MAX_PLACES:
                self._places[steps] = place
            self._groups[steps] = _Group(place, path, steps, parent, self._types.of_table(table))
        return self._groups[steps]

    def _walk(self, spot: _Spot, place: _Place, value: Json) -> None:
        if value is None:
            return
        if place.kind is Kind.JSON:
            self._put(spot, place, "json", json_text(value))
        elif isinstance(value, dict):
            self._walk_object(spot, place, value)
        elif isinstance(value, list):
            self._walk_array(spot, place, value)
        else:
            self._put(spot, place, *convert(value, place.kind))

    def _walk_object(self, spot: _Spot, place: _Place, value: dict[str, Json]) -> None:
        if value and place.depth >= MAX_DEPTH:
            self._put(spot, place, "json", json_text(value))
            return
        declared = place.declared
        # Declared keys first, so that no other spelling of one takes its column.
        keys = value if value.keys() <= declared.keys() else sorted(value, key=_is_not_in(declared))
        for key in keys:
            self._walk(spot, place.child(key), value[key])

    def _walk_array(self, spot: _Spot, place: _Place, value: list[Json]) -> None:
        if not value:
            return
        parent, local = spot.group, place.path or (NESTED_ARRAY,)
        table = table_name(place.table, local)
        if len(parent.path) + len(local) >= MAX_DEPTH or not self._types.try_table(table):
            self._put_elsewhere(spot, local, "json", json_text(value))
            return
        node = place.node[0] if isinstance(place.node, list) else None
        group = self._group((*parent.steps, local), parent, table, node)
        for position, element in enumerate(value):
            element_spot = group.add_row(self._event, spot.row_number, position)
            self._walk(element_spot, group.place, element)

    def _put(self, spot: _Spot, place: _Place, data_type: str, value: Value) -> None:
        column, row = place.column, spot.row
        if spot.group.types.get(column) == data_type and column not in row:
            row[column] = value
        else:
            self._put_elsewhere(spot, place.path or (SCALAR_COLUMN,), data_type, value)

    def _put_elsewhere(self, spot: _Spot, path: Path, data_type: str, value: Value) -> None:
        """Put a value into a new column, a variant, or beside another spelling of its key."""
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


def _is_not_in(keys: Container[str]) -> Callable[[str], bool]:
    return lambda key: key not in keys


def convert(value: bool | int | float | str, kind: Kind | None) -> tuple[str, Value]:
    """Bring a scalar to its declared type if it has a value for it, else keep its own.

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
    """Read an ISO 8601 instant with its offset; None for anything less certain.

    Also for a fraction below a microsecond, which would be cut off.
    """
    if _TOO_FINE.search(text):
        return None
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        return None
    try:
        return instant.astimezone(UTC) if instant.tzinfo else None
    except OverflowError:
        return None


_TOO_FINE = re.compile(r"[.,]\d{7}")
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
