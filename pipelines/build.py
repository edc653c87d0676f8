"""Build the Arrow tables of one package: every warehouse table with its new rows.

Blocks come flattened (`ahead`); what depends on the decisions and on the columns seen so far is
done here, in the order of the spool, so that the same loads always give the same tables. (What is
not declared gets the type that it has first: cut into other loads, an integer before a fraction
makes two columns of what was one.)
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.compute as pc

from pipelines import schema
from pipelines.ahead import Block, Blocks, Flattener
from pipelines.bodies import NotLoadableError, is_strict_json, read_body
from pipelines.columns import ARROW_TYPES, CONTEXT_TYPES, DATA_TYPES, EXACT_INTEGERS, ColumnTypes
from pipelines.flatten import FlatTable, make_context
from pipelines.json_types import Json
from pipelines.keys import root_keys
from pipelines.odd import OddFlattener
from pipelines.schema import Outcome
from pipelines.take import Decision, TakenLine

NamedTable = tuple[str, pa.Table]


class TableBuilder:
    """Build tables package by package; the column types grow over the run."""

    def __init__(self, types: ColumnTypes) -> None:
        self._types = types
        self._odd_flattener = OddFlattener(types)

    def build(self, decisions: Sequence[Decision], blocks: Blocks) -> Iterator[NamedTable]:
        """Yield the tables of all events to be loaded, block by block.

        An event that turns out not to be loadable is set aside in its decision.
        """
        new = {
            decision.line: decision for decision in decisions if decision.outcome is Outcome.LOADED
        }
        for block in blocks:
            yield from self._build_block(block.result(), new)
        yield from self._build_late(new)

    def _build_late(self, new: dict[TakenLine, Decision]) -> Iterator[NamedTable]:
        """Yield the tables of what is in no block.

        Another line of its event was the first to be read, or the receiver has not proven that it
        is JSON on one line.
        """
        is_strict = {line: line.is_object or is_strict_json(line.body) for line in new}
        loose = [decision for line, decision in new.items() if not is_strict[line]]
        with closing(Flattener()) as flattener:
            for block in flattener.submit(line for line in is_strict if is_strict[line]):
                yield from self._build_block(block.result(), new)
        yield from self._build_odd(loose)

    def _build_block(self, block: Block, new: dict[TakenLine, Decision]) -> Iterator[NamedTable]:
        """Yield the tables of the lines of a block that are new, and take these out of `new`."""
        decisions = {line: new.pop(line) for line in block.lines if line in new}
        if len(decisions) < len(block.lines):
            block = _keep(block, decisions)
        odd = block.odd
        tables = [self._place(table) for table in block.tables if table.row_count]
        if None in tables:
            # Some column had no room: these events go the way that knows what to do.
            tables, odd = [], block.lines
        yield from (table for table in tables if table is not None)
        yield from self._build_odd([decisions[line] for line in odd])

    def _build_odd(self, decisions: list[Decision]) -> Iterator[NamedTable]:
        lines: list[TakenLine] = []
        documents: list[dict[str, Json]] = []
        for decision in decisions:
            try:
                documents.append(read_body(decision.line.body))
                lines.append(decision.line)
            except NotLoadableError as error:
                decision.set_aside(str(error))
        if lines:
            for table in self._odd_flattener.flatten(documents, make_context(lines)):
                yield table.name, pa.table(table.columns)

    def _place(self, flat: FlatTable) -> NamedTable | None:
        """Give each undeclared column its place; None when there is no room for one."""
        if not self._types.try_table(flat.name):
            return None
        columns: dict[str, pa.Array] = {}
        for name, array in flat.columns.items():
            if name in flat.declared:
                columns[name] = array
            elif array.null_count < len(array):
                placed, values = self._place_column(flat.name, name, array)
                if placed is None or placed in columns:
                    return None
                columns[placed] = values
        return flat.name, pa.table(columns)

    def _place_column(self, table: str, name: str, array: pa.Array) -> tuple[str | None, pa.Array]:
        data_type = DATA_TYPES[array.type]
        if self._types.data_type(table, name) == "double" and _is_exact_integer(array):
            return name, array.cast(pa.float64())
        return self._types.try_place(table, name, data_type), array


def _keep(block: Block, lines: Collection[TakenLine]) -> Block:
    """Leave out what is not among these lines; no event has two lines in a block."""
    event_ids = pa.array([line.event_id for line in lines], type=pa.string())
    return Block(
        [line for line in block.lines if line in lines],
        [_keep_rows(table, event_ids) for table in block.tables],
        [line for line in block.odd if line in lines],
    )


def _keep_rows(table: FlatTable, event_ids: pa.Array) -> FlatTable:
    is_kept = pc.is_in(table.columns["event_id"].cast(pa.string()), value_set=event_ids)
    columns = {name: array.filter(is_kept) for name, array in table.columns.items()}
    return replace(table, columns=columns)


def _is_exact_integer(array: pa.Array) -> bool:
    if not pa.types.is_int64(array.type):
        return False
    # Not by their absolute values: that of the lowest integer is too large for its type.
    ends = pc.min_max(array).as_py()
    return bool(ends["min"] > -EXACT_INTEGERS and ends["max"] < EXACT_INTEGERS)


def gather(tables: Iterable[NamedTable]) -> Iterator[NamedTable]:
    """Join the tables of many blocks into one each, in order of first appearance.

    What a destination takes for a table is mostly per job, not per row; DuckDB also writes
    the last row group of a table again with every job.
    """
    parts: dict[str, list[pa.Table]] = {}
    for name, table in tables:
        parts.setdefault(name, []).append(table)
    while parts:
        name = next(iter(parts))
        joined = pa.concat_tables(parts.pop(name), promote_options="default")
        yield name, joined.unify_dictionaries()


def build_deliveries(decisions: Sequence[Decision], loaded_at: datetime) -> NamedTable:
    """Build the rows of `deliveries`: one a line, in order."""
    lines = [decision.line for decision in decisions]
    columns: dict[str, Sequence[object]] = {
        "event_id": [line.event_id for line in lines],
        "sent_at": [_try_instant_s(line.sent_at_s) for line in lines],
        "received_at": _instants([line.received_at for line in lines]),
        "loaded_at": [loaded_at] * len(lines),
        "size_bytes": [len(line.body) for line in lines],
        "body_sha256": [line.sha256 for line in lines],
        "segment": [line.segment for line in lines],
        "line": [line.number for line in lines],
        "outcome": [decision.outcome.value for decision in decisions],
        "reason": [decision.reason for decision in decisions],
        "_dlt_id": root_keys(f"{line.segment}:{line.number}" for line in lines).to_arrow(),
    }
    return schema.DELIVERIES_TABLE, pa.table(
        {
            name: pa.array(values, type=ARROW_TYPES[schema.DELIVERIES[name].data_type])
            for name, values in columns.items()
        }
    )


def empty_table(columns: dict[str, schema.Kind]) -> pa.Table:
    """Make a table without rows, which creates its table in the warehouse."""
    types = {name: ARROW_TYPES[kind.data_type] for name, kind in columns.items()}
    if CONTEXT_TYPES.keys() <= columns.keys():
        types |= CONTEXT_TYPES
    return pa.schema(list(types.items())).empty_table()


def _instants(texts: Sequence[str]) -> pa.TimestampArray:
    return pa.array(texts, type=pa.string()).cast(ARROW_TYPES["timestamp"])


def _try_instant_s(seconds: int) -> datetime | None:
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, ValueError, OSError):
        return None
