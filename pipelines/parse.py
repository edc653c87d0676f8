"""Parse bodies into one nested Arrow batch, and name those that do not fit.

pyarrow's JSON reader parses a block of bodies at once, under the declared types, and
infers what is not declared. It fails a whole block for one misfit, but says at which
row: the misfit is taken out and goes the odd way (`odd`). What pyarrow would take
silently but not exactly is found beforehand and goes the odd way as well.

Numbers are parsed as doubles here, since the reader refuses `1.0` for an integer; the
flattening turns them into integers and timestamps, and finds those that do not fit.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import pyarrow as pa
import pyarrow.json as pa_json

from pipelines import schema
from pipelines.freeform import FREE_FORM_KEYS, quote_free_form
from pipelines.schema import Kind, Node

# Deeper than any real event; below it, the odd way keeps the rest as JSON text.
MAX_DEPTH = 16
# Three times what is declared: a block with more distinct fields is better taken row by row.
MAX_FIELDS = 1000

# A block is read again for each misfit; with more of them the odd way is the faster one.
MAX_MISFITS_SHARE = 0.05
MIN_MISFITS = 20
MAX_READINGS = 5

_PARSED_AS: dict[Kind, pa.DataType] = {
    Kind.TEXT: pa.string(),
    Kind.ISO_TIME: pa.string(),
    Kind.BOOL: pa.bool_(),
    Kind.DOUBLE: pa.float64(),
    Kind.BIGINT: pa.float64(),
    Kind.EPOCH_MS: pa.float64(),
    Kind.JSON: pa.string(),
}

# NUL is legal JSON, but no text column of PostgreSQL takes it.
_NUL = b"\\u0000"
_ERROR_ROW = re.compile(r" in row (\d+)\Z")


@dataclass(frozen=True, slots=True)
class Parsed:
    """The bodies that fit, as one struct array, and the positions of both kinds."""

    events: pa.StructArray
    rows: list[int]
    odd: list[int]


class _MisfitsError(Exception):
    """Some bodies must go before the others can be parsed."""

    def __init__(self, rows: Sequence[int]) -> None:
        super().__init__(f"{len(rows)} bodies do not fit")
        self.rows = rows


class _MisplacedError(Exception):
    """A free-form key stands where it is not declared, so that its value was quoted in error."""


@dataclass(slots=True)
class Parser:
    """Parse blocks, remembering which undeclared fields must stay text.

    pyarrow takes a string like `2024-01-05` for a timestamp and forgets how it was
    written, so such fields are added to the explicit schema as text and read again.
    """

    _explicit: pa.Schema = field(default_factory=lambda: EXPLICIT)

    def parse(self, bodies: Sequence[bytes]) -> Parsed:
        """Parse one block of bodies; `odd` are those that must go value by value."""
        lines = [_on_one_line(body) for body in bodies]
        readable = [quote_free_form(line) for line in lines]
        odd = {row for row, body in enumerate(readable) if not _is_readable(body)}
        for _ in range(MAX_READINGS):
            rows = [row for row in range(len(bodies)) if row not in odd]
            try:
                events = self._read_all([readable[row] for row in rows])
            except _MisplacedError:
                odd.update(row for row in rows if readable[row] is not lines[row])
            except _MisfitsError as error:
                odd.update(rows[misfit] for misfit in error.rows)
            else:
                return Parsed(events, rows, sorted(odd))
        return Parsed(self._read_all([]), [], list(range(len(bodies))))

    def _read_all(self, bodies: Sequence[bytes]) -> pa.StructArray:
        try:
            table = self._read(bodies)
        except pa.ArrowInvalid as error:
            most = max(MIN_MISFITS, int(len(bodies) * MAX_MISFITS_SHARE))
            misfits = list(islice(self._find_misfits(bodies, error), most + 1))
            if not misfits or len(misfits) > most:
                misfits = list(range(len(bodies)))
            raise _MisfitsError(misfits) from error
        events = table.to_struct_array().combine_chunks()
        if _has_misplaced(events, EVENT_TYPE):
            raise _MisplacedError
        return events

    def _find_misfits(
        self, bodies: Sequence[bytes], error: pa.ArrowInvalid | None, start: int = 0
    ) -> Iterator[int]:
        """Follow the errors through the block: what comes after a misfit is read by itself.

        An error that does not name its row is looked for in each half.
        """
        while error is not None:
            found = _ERROR_ROW.search(str(error))
            if found is None:
                yield from self._search_halves(bodies, start)
                return
            row = int(found[1])
            yield start + row
            start += row + 1
            bodies = bodies[row + 1 :]
            error = self._try_error(bodies)

    def _search_halves(self, bodies: Sequence[bytes], start: int) -> Iterator[int]:
        if len(bodies) == 1:
            yield start
            return
        middle = len(bodies) // 2
        for half, half_start in ((bodies[:middle], start), (bodies[middle:], start + middle)):
            yield from self._find_misfits(half, self._try_error(half), half_start)

    def _try_error(self, bodies: Sequence[bytes]) -> pa.ArrowInvalid | None:
        try:
            self._read(bodies)
        except pa.ArrowInvalid as error:
            return error
        return None

    def _read(self, bodies: Sequence[bytes]) -> pa.Table:
        if not bodies:
            return EXPLICIT.empty_table()
        block = b"\n".join(bodies)
        table = _read_block(block, self._explicit)
        if _is_unwieldy(table.schema):
            raise pa.ArrowInvalid("too many fields, or nested too deeply")
        as_text = _as_text(table.schema, self._explicit)
        if as_text is not self._explicit:
            self._explicit = as_text
            table = _read_block(block, as_text)
        # pyarrow 26 loses the first nulls of an undeclared array, which leaves it invalid.
        table.validate()
        if table.num_rows != len(bodies):
            raise pa.ArrowInvalid(f"{len(bodies)} bodies were read as {table.num_rows} events")
        return table


def _on_one_line(body: bytes) -> bytes:
    """Take the line breaks out of a body that is known to be JSON: there they are white space."""
    return b" ".join(body.splitlines()) if b"\n" in body or b"\r" in body else body


def _is_readable(body: bytes) -> bool:
    # The backslash first: to look for one byte takes a tenth of the time.
    return body.startswith(b"{") and not (b"\\" in body and _NUL in body)


def _read_block(block: bytes, explicit: pa.Schema) -> pa.Table:
    # One block, so that the row in an error message counts from the first body.
    return pa_json.read_json(
        pa.BufferReader(block),
        read_options=pa_json.ReadOptions(use_threads=False, block_size=len(block) + 1),
        parse_options=pa_json.ParseOptions(
            explicit_schema=explicit, unexpected_field_behavior="infer"
        ),
    )


def _as_text(read: pa.Schema, explicit: pa.Schema) -> pa.Schema:
    """Extend the explicit schema by text for every field that was read as a timestamp."""
    extended = _text_for_timestamps(pa.struct(list(read)), pa.struct(list(explicit)))
    return explicit if extended is None else pa.schema(list(extended))


def _text_for_timestamps(read: pa.DataType, known: pa.DataType | None) -> pa.DataType | None:
    """Give `known` with text at each timestamp of `read`; None when there is none."""
    if pa.types.is_timestamp(read):
        return pa.string()
    if pa.types.is_list(read):
        inner = known.value_type if known is not None else None
        element = _text_for_timestamps(read.value_type, inner)
        return None if element is None else pa.list_(element)
    if not pa.types.is_struct(read):
        return None
    fields = {f.name: f.type for f in known} if known is not None else {}
    changed = {
        f.name: changed
        for f in read
        if (changed := _text_for_timestamps(f.type, fields.get(f.name))) is not None
    }
    return pa.struct(list((fields | changed).items())) if changed else None


def _has_misplaced(values: pa.Array, declared: pa.DataType | None) -> bool:
    """Tell whether a key that is free-form where it is declared holds something elsewhere."""
    if pa.types.is_list(values.type):
        element = declared.value_type if declared is not None else None
        return _has_misplaced(values.values, element)
    if not pa.types.is_struct(values.type):
        return False
    known = {} if declared is None else {f.name: f.type for f in declared}
    return any(
        (f.name in FREE_FORM_KEYS and f.name not in known and inner.null_count < len(inner))
        or _has_misplaced(inner, known.get(f.name))
        for f, inner in zip(
            values.type, map(values.field, range(values.type.num_fields)), strict=True
        )
    )


def _is_unwieldy(read: pa.Schema) -> bool:
    """Tell whether the fields go deeper, or are more, than the fast way should carry."""
    leaf_count = 0
    todo: list[tuple[pa.DataType, int]] = [(field.type, 1) for field in read]
    while todo:
        data_type, depth = todo.pop()
        if depth > MAX_DEPTH or leaf_count > MAX_FIELDS:
            return True
        if pa.types.is_list(data_type):
            todo.append((data_type.value_type, depth + 1))
        elif pa.types.is_struct(data_type):
            todo.extend((field.type, depth + 1) for field in data_type)
        else:
            leaf_count += 1
    return False


def _arrow_type(node: Node) -> pa.DataType:
    if isinstance(node, Kind):
        return _PARSED_AS[node]
    if isinstance(node, list):
        return pa.list_(_arrow_type(node[0]))
    return pa.struct([(key, _arrow_type(child)) for key, child in node.items()])


EVENT_TYPE: pa.DataType = _arrow_type(schema.EVENT)
EXPLICIT: pa.Schema = pa.schema(list(EVENT_TYPE))
