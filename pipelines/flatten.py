"""Flatten a nested Arrow batch of events into flat columns, one table at a time.

An object becomes columns, an array becomes a child table with the keys of its parent
and the context columns of its event. All work is done on whole columns: list offsets
give the parents of the elements, and nothing is turned into Python values.

A value that its declared type cannot hold exactly (a fraction in an integer column, an
instant out of range) makes its event odd: `UnfitEventsError` names the events, and the
caller flattens the others and sends these through `odd`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines import schema
from pipelines.columns import ARROW_TYPES, EXACT_INTEGERS, MAX_EPOCH_MS, MIN_EPOCH_MS
from pipelines.keys import RowKeys, child_keys, root_keys
from pipelines.naming import NESTED_ARRAY, SCALAR_COLUMN, Path, column_name, table_name
from pipelines.schema import Kind, Node
from pipelines.take import TakenLine

Rows = npt.NDArray[np.int64]

TIMESTAMP = ARROW_TYPES["timestamp"]
_INSTANT = r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?(Z|[+-]\d\d:\d\d)$"


class UnfitEventsError(Exception):
    """Some events hold values that their declared types cannot take exactly."""

    def __init__(self, events: Rows) -> None:
        super().__init__(f"{len(events)} events do not fit their declared types")
        self.events = np.unique(events)


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What the spool knows of each event: arrays of one length."""

    event_ids: pa.StringArray
    received_at: pa.TimestampArray


def make_context(lines: Sequence[TakenLine]) -> Context:
    """Gather what the lines say beside their bodies."""
    received_at = pa.array([line.received_at for line in lines], type=pa.string())
    return Context(
        event_ids=pa.array([line.event_id for line in lines], type=pa.string()),
        received_at=received_at.cast(TIMESTAMP),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class FlatTable:
    """Rows of one warehouse table, from one array of the document."""

    name: str
    columns: dict[str, pa.Array]
    # Columns that the declaration names; the others may still need a variant.
    declared: frozenset[str]

    @property
    def row_count(self) -> int:
        return len(self.columns["_dlt_id"])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Level:
    """The rows of one record type on their way down the tree."""

    table: str
    path: Path  # from the event to the array, for keys
    node: Node | None  # the declaration of one element; None: not declared
    values: pa.Array
    events: Rows  # the event of each row
    keys: RowKeys
    parents: RowKeys | None
    positions: Rows | None


def encode_context(columns: dict[str, pa.Array]) -> dict[str, pa.Array]:
    """Bring the context columns to the types that all tables have them in."""
    return {
        name: array.dictionary_encode() if pa.types.is_string(array.type) else array
        for name, array in columns.items()
    }


def flatten(events: pa.StructArray, context: Context) -> list[FlatTable]:
    """Flatten the events; parents come before their children.

    Raises `UnfitEventsError` if any event must go value by value.
    """
    root = _Level(
        table=schema.ROOT_TABLE,
        path=(),
        node=schema.EVENT,
        values=events,
        events=np.arange(len(events), dtype=np.int64),
        keys=root_keys(context.event_ids.to_pylist()),
        parents=None,
        positions=None,
    )
    shared = encode_context(_context_columns(events, context))
    tables: list[FlatTable] = []
    levels = [root]
    while levels:
        level = levels.pop(0)
        table, children = _flatten_level(level, shared)
        tables.append(table)
        levels += children
    return tables


def _flatten_level(level: _Level, shared: dict[str, pa.Array]) -> tuple[FlatTable, list[_Level]]:
    columns = _own_columns(level, shared)
    declared = set(columns)
    children: list[_Level] = []
    for path, node, array in _leaves(level.values, level.node, ()):
        if pa.types.is_list(array.type) and node is not Kind.JSON:
            children += _child_level(level, path, node, array)
            continue
        column = _convert(array, node, level.events)
        name = column_name(level.table, path or (SCALAR_COLUMN,))
        if column is None or (name in columns and column.null_count == len(column)):
            continue
        if name in columns:
            # Two keys of one object with one spelling: the odd way keeps them apart.
            raise UnfitEventsError(level.events[_valid(column)])
        columns[name] = column
        if isinstance(node, Kind):
            declared.add(name)
    return FlatTable(name=level.table, columns=columns, declared=frozenset(declared)), children


def _own_columns(level: _Level, shared: dict[str, pa.Array]) -> dict[str, pa.Array]:
    columns: dict[str, pa.Array] = {"_dlt_id": level.keys.to_arrow()}
    if level.parents is None:
        return columns | shared
    columns["_dlt_parent_id"] = level.parents.to_arrow()
    columns["_dlt_list_idx"] = pa.array(level.positions, type=pa.int64())
    rows = pa.array(level.events)
    return columns | {name: array.take(rows) for name, array in shared.items()}


def _child_level(level: _Level, path: Path, node: Node | None, array: pa.Array) -> list[_Level]:
    parents = pc.list_parent_indices(array).to_numpy().astype(np.int64)
    positions = _positions(parents)
    full_path = (*level.path, *path) if path else (*level.path, NESTED_ARRAY)
    parent_keys = level.keys.take(parents)
    return [
        _Level(
            table=table_name(level.table, path or (NESTED_ARRAY,)),
            path=full_path,
            node=node[0] if isinstance(node, list) else None,
            values=array.flatten(),
            events=level.events[parents],
            keys=child_keys(parent_keys, full_path, positions),
            parents=parent_keys,
            positions=positions,
        )
    ]


def _positions(parents: Rows) -> Rows:
    """Count the elements of each parent from 0; the elements of one parent lie together."""
    rows = np.arange(len(parents), dtype=np.int64)
    is_first = np.diff(parents, prepend=-1) != 0
    return rows - np.maximum.accumulate(np.where(is_first, rows, 0))


def _leaves(
    array: pa.Array, node: Node | None, path: Path
) -> Iterator[tuple[Path, Node | None, pa.Array]]:
    """Walk down the objects of a record to its scalars and arrays."""
    if not pa.types.is_struct(array.type) or node is Kind.JSON:
        yield path, node, array
        return
    children = node if isinstance(node, dict) else {}
    for field, values in zip(array.type, array.flatten(), strict=True):
        yield from _leaves(values, children.get(field.name), (*path, field.name))


def _convert(array: pa.Array, node: Node | None, events: Rows) -> pa.Array | None:
    """Bring one leaf to its column's Arrow type; None when it says nothing."""
    if node is Kind.EPOCH_MS:
        return _from_epoch_ms(array, events)
    if node is Kind.ISO_TIME:
        return _from_iso(array, events)
    if node is Kind.BIGINT:
        return _to_integers(array, events)
    if pa.types.is_null(array.type):
        return None
    if node in (None, Kind.DOUBLE) and pa.types.is_float64(array.type):
        # An integer of more than 53 bits may have been rounded by the parser.
        _refuse(pc.greater_equal(pc.abs(array), EXACT_INTEGERS), events)
    return array


def _from_epoch_ms(array: pa.Array, events: Rows) -> pa.Array:
    microseconds = pc.round(pc.multiply(array, 1000.0))
    # Later than the year 2255 a double does not hold every microsecond.
    _refuse(pc.greater_equal(pc.abs(microseconds), EXACT_INTEGERS), events)
    return microseconds.cast(pa.int64(), safe=False).cast(TIMESTAMP)


def _from_iso(array: pa.Array, events: Rows) -> pa.Array:
    # The odd way reads more spellings, and makes a variant of what it cannot read.
    _refuse(pc.invert(pc.match_substring_regex(array, _INSTANT)), events)
    try:
        instants = array.cast(TIMESTAMP)
    except pa.ArrowInvalid:  # the 31st of February
        raise UnfitEventsError(events[_valid(array)]) from None
    microseconds = instants.cast(pa.int64())
    _refuse(pc.less(microseconds, MIN_EPOCH_MS * 1000), events)
    _refuse(pc.greater(microseconds, MAX_EPOCH_MS * 1000 + 999), events)
    return instants


def _to_integers(array: pa.Array, events: Rows) -> pa.Array:
    inexact = pc.greater_equal(pc.abs(array), EXACT_INTEGERS)
    _refuse(pc.or_(inexact, pc.not_equal(array, pc.trunc(array))), events)
    return array.cast(pa.int64(), safe=False)


def _refuse(is_unfit: pa.BooleanArray, events: Rows) -> None:
    if is_unfit.true_count:
        raise UnfitEventsError(
            events[pc.fill_null(is_unfit, fill_value=False).to_numpy(zero_copy_only=False)]
        )


def _valid(array: pa.Array) -> npt.NDArray[np.bool_]:
    mask: npt.NDArray[np.bool_] = array.is_valid().to_numpy(zero_copy_only=False)
    return mask


def _context_columns(events: pa.StructArray, context: Context) -> dict[str, pa.Array]:
    nothing = pa.nulls(len(events), pa.string())
    created = _value_at(events, ("created",))
    rows = np.arange(len(events), dtype=np.int64)
    occurred_at = pa.nulls(len(events), TIMESTAMP)
    return {
        "event_id": context.event_ids,
        "event_type": _first_text(events, (("type",),), nothing),
        "session_id": _first_text(events, schema.SESSION_ID_PATHS, nothing),
        "visitor_id": _first_text(events, schema.VISITOR_ID_PATHS, nothing),
        "occurred_at": occurred_at if created is None else _from_epoch_ms(created, rows),
        "received_at": context.received_at,
    }


def _first_text(events: pa.StructArray, paths: tuple[Path, ...], nothing: pa.Array) -> pa.Array:
    found = [_value_at(events, path) for path in paths]
    return pc.coalesce(*[array for array in found if array is not None], nothing)


def _value_at(events: pa.StructArray, path: Path) -> pa.Array | None:
    array: pa.Array = events
    for key in path:
        index = array.type.get_field_index(key)
        if index < 0:
            return None
        array = array.flatten()[index]
    return array
