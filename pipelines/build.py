"""Build the Arrow tables of one package: every warehouse table with its new rows.

Blocks of bodies are parsed and flattened in parallel, since pyarrow works outside the
interpreter's lock; what depends on the columns seen so far is done afterwards, in the
order of the spool, so that the same spool always gives the same tables.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines import schema
from pipelines.bodies import NotLoadableError, read_body
from pipelines.columns import ARROW_TYPES, DATA_TYPES, EXACT_INTEGERS, ColumnTypes
from pipelines.flatten import Context, FlatTable, UnfitEventsError, flatten
from pipelines.json_types import Json
from pipelines.keys import root_keys
from pipelines.odd import OddFlattener
from pipelines.parse import Parser
from pipelines.schema import Outcome
from pipelines.take import Decision, TakenLine

NamedTable = tuple[str, pa.Table]

BLOCK_BYTES = 16 << 20
# Parsed blocks that may wait for their turn, which bounds memory.
BLOCKS_AHEAD = 4


@dataclass(frozen=True, slots=True)
class _Block:
    """One block after the parallel part: flat tables, and the decisions gone odd."""

    decisions: Sequence[Decision]
    tables: list[FlatTable]
    odd: list[Decision]


class TableBuilder:
    """Build tables package by package; the column types grow over the run."""

    def __init__(self, types: ColumnTypes) -> None:
        self._types = types
        self._parser = Parser()
        self._odd_flattener = OddFlattener(types)

    def build(self, decisions: Sequence[Decision]) -> Iterator[NamedTable]:
        """Yield the tables of all events to be loaded, block by block.

        An event that turns out not to be loadable is set aside in its decision.
        """
        new = [decision for decision in decisions if decision.outcome is Outcome.LOADED]
        for block in self._flatten_blocks(_cut(new)):
            odd = block.odd
            tables = [self._place(table) for table in block.tables if table.row_count]
            if None in tables:
                # Some column had no room: these events go the way that knows what to do.
                tables, odd = [], list(block.decisions)
            yield from (table for table in tables if table is not None)
            yield from self._build_odd(odd)

    def _flatten_blocks(self, blocks: Iterable[list[Decision]]) -> Iterator[_Block]:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            ahead: deque[Future[_Block]] = deque()
            for block in blocks:
                ahead.append(pool.submit(self._flatten_block, block))
                if len(ahead) > BLOCKS_AHEAD:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()

    def _flatten_block(self, decisions: list[Decision]) -> _Block:
        parsed = self._parser.parse([decision.line.body for decision in decisions])
        odd = {*parsed.odd}
        rows, events = np.array(parsed.rows, dtype=np.int64), parsed.events
        while len(rows):
            context = _context([decisions[row].line for row in rows])
            try:
                tables = flatten(events, context)
            except UnfitEventsError as error:
                odd.update(rows[error.events].tolist())
                fit = np.delete(np.arange(len(rows)), error.events)
                rows, events = rows[fit], events.take(pa.array(fit))
                continue
            return _Block(decisions, tables, [decisions[row] for row in sorted(odd)])
        return _Block(decisions, [], [decisions[row] for row in sorted(odd)])

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
            for table in self._odd_flattener.flatten(documents, _context(lines)):
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


def _is_exact_integer(array: pa.Array) -> bool:
    return bool(pa.types.is_int64(array.type) and pc.max(pc.abs(array)).as_py() < EXACT_INTEGERS)


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
        yield name, _join(parts.pop(name))


def _join(tables: list[pa.Table]) -> pa.Table:
    """Join tables of which some hold texts as dictionaries that others hold as they are."""
    encoded = {f.name for table in tables for f in table.schema if pa.types.is_dictionary(f.type)}
    alike = [_encode(table, encoded) for table in tables]
    return pa.concat_tables(alike, promote_options="default").unify_dictionaries()


def _encode(table: pa.Table, encoded: set[str]) -> pa.Table:
    for index, name in enumerate(table.column_names):
        if name in encoded and pa.types.is_string(table.column(index).type):
            table = table.set_column(index, name, table.column(index).dictionary_encode())
    return table


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
    fields = [(name, ARROW_TYPES[kind.data_type]) for name, kind in columns.items()]
    return pa.schema(fields).empty_table()


def _cut(decisions: Sequence[Decision]) -> Iterator[list[Decision]]:
    block: list[Decision] = []
    size_bytes = 0
    for decision in decisions:
        block.append(decision)
        size_bytes += len(decision.line.body)
        if size_bytes >= BLOCK_BYTES:
            yield block
            block, size_bytes = [], 0
    if block:
        yield block


def _context(lines: Sequence[TakenLine]) -> Context:
    return Context(
        event_ids=pa.array([line.event_id for line in lines], type=pa.string()),
        received_at=_instants([line.received_at for line in lines]),
    )


def _instants(texts: Sequence[str]) -> pa.TimestampArray:
    return pa.array(texts, type=pa.string()).cast(ARROW_TYPES["timestamp"])


def _try_instant_s(seconds: int) -> datetime | None:
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, ValueError, OSError):
        return None
