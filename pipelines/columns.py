"""Know the type of every column, and where a value of another type goes.

The types are the declared ones and those that the warehouse has from earlier loads;
what a run adds is remembered for the rest of the run. A value that does not fit its
column goes into a variant beside it, because dlt cannot change a column's type and a
mismatch would fail the whole load.
"""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from pipelines import schema
from pipelines.naming import OVERFLOW_COLUMN, declared_tables, variant_name
from pipelines.schema import Kind

ARROW_TYPES: dict[str, pa.DataType] = {
    "text": pa.string(),
    "bigint": pa.int64(),
    "double": pa.float64(),
    "bool": pa.bool_(),
    "timestamp": pa.timestamp("us", tz="UTC"),
    "json": pa.string(),
}
DATA_TYPES: dict[pa.DataType, str] = {
    pa.string(): "text",
    pa.int64(): "bigint",
    pa.float64(): "double",
    pa.bool_(): "bool",
}

# What all rows of an event share, as dictionaries of texts: no row copies them, nor does any file.
CONTEXT_TYPES: dict[str, pa.DataType] = {
    name: pa.dictionary(pa.int32(), pa.string()) if kind is Kind.TEXT else ARROW_TYPES["timestamp"]
    for name, kind in schema.CONTEXT_COLUMNS.items()
}

# A row of PostgreSQL has 8,160 bytes, and up to 24 of each column cannot be moved out of it;
# and a payload with thousands of keys would bury the analyst's columns.
MAX_COLUMNS = 300
MAX_TABLES = 200

# Instants that every destination holds, and Python: the years 1 to 9999.
MIN_EPOCH_MS = -62_135_596_800_000
MAX_EPOCH_MS = 253_402_300_799_999

# Above this a double no longer holds every integer.
EXACT_INTEGERS = 2**53


class ColumnTypes:
    """The data type of each column of each table, growing during a run."""

    def __init__(self, stored: Mapping[str, Mapping[str, str]] | None = None) -> None:
        self._tables: dict[str, dict[str, str]] = {
            table: {column: kind.data_type for column, kind in columns.items()}
            for table, columns in declared_tables().items()
        }
        for table, columns in (stored or {}).items():
            self._tables.setdefault(table, {}).update(columns)

    def data_type(self, table: str, column: str) -> str | None:
        return self._tables.get(table, {}).get(column)

    def of_table(self, table: str) -> Mapping[str, str]:
        """Give the types of a table's columns; what is added later shows in it."""
        return self._tables.setdefault(table, {})

    def try_table(self, table: str) -> bool:
        """Tell whether rows may go to this table, adding it; False when there is no room."""
        if table not in self._tables and len(self._tables) >= MAX_TABLES:
            return False
        self._tables.setdefault(table, {})
        return True

    def try_place(self, table: str, column: str, data_type: str) -> str | None:
        """Give the column for values of this type, adding it; None when there is no room."""
        columns = self._tables.setdefault(table, {})
        while (known := columns.get(column)) != data_type:
            if known is None:
                if len(columns) >= MAX_COLUMNS and column != OVERFLOW_COLUMN:
                    return None
                columns[column] = data_type
                return column
            column = variant_name(column, data_type)
        return column
