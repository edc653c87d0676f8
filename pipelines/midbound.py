"""The dlt source: flat Arrow tables in, one dlt table each out.

dlt 1.31 cannot chain Arrow tables as parent and child, so each is a root table that
carries the keys of its parent itself. Appending is safe here: `packages` has dropped
every event that the warehouse holds and removed what an unfinished load left behind.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator

import dlt
import pyarrow as pa
from dlt.common.schema.typing import TColumnSchema
from dlt.extract.items import DataItemWithMeta
from dlt.extract.resource import DltResource

from pipelines.build import NamedTable
from pipelines.columns import ColumnTypes

# What dlt says at every table of every load: JSON travels as text in Arrow, so the hints
# differ; and only parquet and csv are written without a detour through Python.
_NO_NEWS = (
    "when merging arrow schema with dlt schema",
    "native writer could not be found",
)


def _is_news(record: logging.LogRecord) -> bool:
    return not any(known in str(record.msg) for known in _NO_NEWS)


logging.getLogger("dlt").addFilter(_is_news)


@dlt.source(name="midbound", schema_contract="evolve")
def midbound(tables: Iterable[NamedTable], types: ColumnTypes) -> DltResource:
    """Yield the tables under their names; `types` says which text columns hold JSON."""

    @dlt.resource(name="spool", write_disposition="append")
    def spool() -> Iterator[DataItemWithMeta]:
        for name, table in tables:
            yield _with_hints(name, table, types)

    return spool


def _with_hints(name: str, table: pa.Table, types: ColumnTypes) -> DataItemWithMeta:
    json_columns = {
        column: TColumnSchema(name=column, data_type="json")
        for column in table.column_names
        if types.data_type(name, column) == "json"
    }
    hints = dlt.mark.make_hints(table_name=name, write_disposition="append", columns=json_columns)
    return dlt.mark.with_hints(table, hints, create_table_variant=True)
