"""Flattening agrees with an oracle that nobody here wrote: dlt's relational normaliser.

dlt flattens the same documents under its `direct` names, which keep every key as sent.
Both results are brought to one form, a multiset of rows and cells: where a row lies
(tables and positions from the event down), the column, and the exact value. A variant
counts as its column, and a column of its own for a second spelling as the first.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from functools import cache
from itertools import pairwise

import pyarrow as pa
import pytest
from dlt.common.schema import Schema
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from spools import build, numbered_events, sample_document, to_body

import pipelines.ahead
from pipelines import schema
from pipelines.bodies import read_body
from pipelines.columns import ARROW_TYPES, ColumnTypes
from pipelines.flatten import Context, FlatTable, UnfitEventsError, flatten
from pipelines.naming import collision_name, column_name, table_name, variant_name
from pipelines.odd import OddFlattener
from pipelines.parse import Parser
from pipelines.schema import Kind, Node

OWN = {*schema.CONTEXT_COLUMNS, *schema.CHILD_KEYS}
DATA_TYPES = ("text", "bigint", "double", "bool", "timestamp", "json")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Place = tuple[tuple[str, int], ...]  # table and position, from the event down
Cells = Counter[tuple[Place, str, object]]  # the column `*` stands for the row itself

relaxed = settings(
    deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)


class _JsonText(str):
    """A free-form value, which stays one value in both flattenings."""

    __slots__ = ()


# --- what dlt makes of a document


def _oracle() -> Schema:
    normalizer = {"module": "dlt.common.normalizers.json.relational"}
    return Schema("oracle", normalizers={"names": "direct", "json": normalizer})


def _expected(documents: Sequence[dict]) -> tuple[Cells, dict[tuple[str, str], str]]:
    """Give dlt's cells, and for every name that one of our columns may have its plain name."""
    cells: Cells = Counter()
    plain_names: dict[tuple[str, str], str] = {}
    oracle = _oracle()
    for number, document in enumerate(documents):
        places: dict[str, Place] = {}
        nodes: dict[str, Node | None] = {}
        frozen = _freeze(schema.EVENT, document)
        for (_, _, path), row in oracle.normalize_data_item(frozen, "load", "events"):
            if "_dlt_parent_id" in row:
                parent = places[row["_dlt_parent_id"]]
                place = (*parent, (table_name(parent[-1][0], path), row["_dlt_list_idx"]))
                node = _node_at(nodes[row["_dlt_parent_id"]], path)
                node = node[0] if isinstance(node, list) else None
            else:
                place, node = (("events", number),), schema.EVENT
            places[row["_dlt_id"]], nodes[row["_dlt_id"]] = place, node
            cells[place, "*", None] += 1
            for name, value in row.items():
                if not name.startswith("_dlt") and value is not None:
                    column = _count_cell(cells, place, node, name, value)
                    _fold(plain_names, place[-1][0], *column)
    return cells, plain_names


def _count_cell(
    cells: Cells, place: Place, node: Node | None, name: str, value: object
) -> tuple[str, tuple[str, ...]]:
    path = tuple(name.split("▶"))
    # An array's element that is no object has the column `value` in dlt as well.
    leaf = node if isinstance(node, Kind) and name == "value" else _node_at(node, path)
    column = column_name(place[-1][0], path)
    cells[place, column, _expected_value(value, leaf)] += 1
    return column, path


def _freeze(node: Node | None, value: object) -> object:
    if node is Kind.JSON and value is not None:
        return _JsonText(json.dumps(_without_nul(value), sort_keys=True))
    if isinstance(value, dict):
        children = node if isinstance(node, dict) else {}
        return {key: _freeze(children.get(key), child) for key, child in value.items()}
    if isinstance(value, list):
        element = node[0] if isinstance(node, list) else None
        return [_freeze(element, child) for child in value]
    return value


def _node_at(node: Node | None, path: Iterable[str]) -> Node | None:
    for key in path:
        node = node.get(key) if isinstance(node, dict) else None
    return node


def _expected_value(value: object, kind: Node | None) -> object:
    if isinstance(value, _JsonText):
        return "json", str(value)
    if kind in (Kind.EPOCH_MS, Kind.ISO_TIME) and not isinstance(value, bool):
        instant = _try_instant(value, is_number_allowed=kind is Kind.EPOCH_MS)
        if instant is not None:
            return "timestamp", instant
    if isinstance(value, int) and not isinstance(value, bool) and not -(2**63) <= value < 2**63:
        return "text", str(value)
    return _actual_value(_without_nul(value))


def _without_nul(value: object) -> object:
    """Replace NUL in texts, which PostgreSQL takes in none."""
    if isinstance(value, str):
        return value.replace("\0", "\ufffd")
    if isinstance(value, list):
        return [_without_nul(element) for element in value]
    if isinstance(value, dict):
        return {_without_nul(key): _without_nul(child) for key, child in value.items()}
    return value


def _try_instant(value: object, *, is_number_allowed: bool) -> int | None:
    """Give the microseconds since 1970 of a value in a column of timestamps."""
    if isinstance(value, str):
        try:
            instant = datetime.fromisoformat(value)
            # In the years 1 to 9999 as UTC, and no finer than microseconds.
            is_certain = instant.tzinfo and instant.astimezone(UTC) and "1234567" not in value
        except (ValueError, OverflowError):
            return None
        return (instant - EPOCH) // timedelta(microseconds=1) if is_certain else None
    in_years_1_to_9999 = -62_135_596_800_000 <= value <= 253_402_300_799_999
    return round(value * 1000) if is_number_allowed and in_years_1_to_9999 else None


def _fold(plain: dict[tuple[str, str], str], table: str, column: str, path: tuple) -> None:
    plain.update(((table, name), column) for name in _other_names(column, path))


@cache
def _other_names(column: str, path: tuple[str, ...]) -> list[str]:
    names = _with_variants([column])
    return _with_variants([*names, *(collision_name(name, path) for name in names)])


def _with_variants(names: list[str]) -> list[str]:
    return [*names, *(variant_name(name, kind) for name in names for kind in DATA_TYPES)]


# --- what we make of it


def _actual(
    tables: Iterable[tuple[str, dict[str, pa.Array]]],
    types: ColumnTypes,
    plain_names: dict[tuple[str, str], str],
    event_ids: Sequence[str],
) -> Cells:
    rows = [
        (table, row)
        for table, columns in tables
        for row in pa.table(columns).to_pylist()
    ]  # fmt: skip
    places = _places(rows, event_ids)
    cells: Cells = Counter()
    for table, row in rows:
        place = places[table, row["_dlt_id"]]
        cells[place, "*", None] += 1
        for name, value in row.items():
            if name not in OWN and value is not None:
                column = plain_names.get((table, name), name)
                is_json = types.data_type(table, name) == "json"
                cells[place, column, _actual_value(value, is_json=is_json)] += 1
    return cells


def _places(rows: list[tuple[str, dict]], event_ids: Sequence[str]) -> dict[tuple, Place]:
    by_key = {row["_dlt_id"]: (table, row) for table, row in rows}
    assert len(by_key) == len(rows), "two rows have one key"

    def place(table: str, row: dict) -> Place:
        if "_dlt_parent_id" not in row:
            return ((table, event_ids.index(row["event_id"])),)
        return (*place(*by_key[row["_dlt_parent_id"]]), (table, row["_dlt_list_idx"]))

    return {(table, row["_dlt_id"]): place(table, row) for table, row in rows}


def _actual_value(value: object, *, is_json: bool = False) -> object:
    if is_json:
        return "json", json.dumps(json.loads(value), sort_keys=True)
    if isinstance(value, datetime):
        return "timestamp", (value - EPOCH) // timedelta(microseconds=1)
    if isinstance(value, bool):
        return "bool", value
    # Exactly, whether it lies in a column of integers or of doubles.
    return ("number", Fraction(value)) if isinstance(value, (int, float)) else ("text", value)


def _check_build(documents: Sequence[dict], cuts: Sequence[int] = ()) -> None:
    """Build the documents, cut into several builds of one run, and compare with dlt."""
    expected, plain_names = _expected(documents)
    types = ColumnTypes()
    event_ids = [f"evt_{number}" for number in range(len(documents))]
    events = list(zip(event_ids, map(to_body, documents), strict=True))
    tables = [
        (name, dict(zip(table.column_names, table.columns, strict=True)))
        for start, end in pairwise(sorted({0, *cuts, len(events)}))
        for name, table in build(*events[start:end], types=types)
    ]
    assert _actual(tables, types, plain_names, event_ids) == expected


def _flatten_fast(bodies: Sequence[bytes], context: Context) -> list[FlatTable] | None:
    """Flatten the fast way; None if that does not take all of them."""
    parsed = Parser().parse(bodies)
    if parsed.odd:
        return None
    try:
        return [table for table in flatten(parsed.events, context) if table.row_count]
    except UnfitEventsError:
        return None


def _context(count: int) -> Context:
    return Context(
        event_ids=pa.array([f"evt_{number}" for number in range(count)]),
        received_at=pa.array([0] * count, pa.int64()).cast(ARROW_TYPES["timestamp"]),
    )


def _check_fast_against_odd(documents: Sequence[dict]) -> bool:
    """Compare the two ways by key, own columns included; False if the fast one refuses."""
    bodies = [to_body(document) for document in documents]
    fast = _flatten_fast(bodies, _context(len(bodies)))
    if fast is None:
        return False
    types = ColumnTypes()
    odd = OddFlattener(types).flatten([read_body(body) for body in bodies], _context(len(bodies)))
    _, plain_names = _expected(documents)
    assert _keyed(fast, plain_names) == _keyed(odd, plain_names)
    return True


def _keyed(tables: Iterable[FlatTable], plain_names: dict[tuple[str, str], str]) -> Cells:
    return Counter(
        (
            (table.name, row["_dlt_id"]),
            plain_names.get((table.name, name), name),
            _actual_value(value),
        )
        for table in tables
        for row in pa.table(table.columns).to_pylist()
        for name, value in row.items()
        if value is not None
    )


# --- documents

INSTANTS = [
    "0000-01-01T00:00:00Z",
    "0001-01-01T00:00:00Z",
    "0001-01-01T00:00:00+23:00",
    "9999-12-31T23:59:59.999999Z",
    "9999-12-31T23:59:59-23:59",
    "2025-02-14T22:05:10.1234567Z",
    "2025-02-31T22:05:10Z",
]

DECLARED_KEYS = ["id", "type", "created", "data", "session", "events", "enrichment", "companies"]
DECLARED_KEYS += ["person", "skills", "employments", "company", "funding", "totalRaisedUsd"]
DECLARED_KEYS += ["ts", "props", "options", "screen", "width", "enrichedAt", "network", "isEU"]
UNKNOWN_KEYS = ["aB", "a_b", "a.b", "A B", "x", "X", "value", "list", "é", "ü", "日本", "_x", "x_"]
UNKNOWN_KEYS += ["1", "a__b", "Type", "event_id", "k" * 300, "-", "payload"]

# dlt's direct names are cut at ▶, lose white space at their ends, and change a few signs.
keys = st.sampled_from(DECLARED_KEYS + UNKNOWN_KEYS) | st.text(min_size=1, max_size=6).filter(
    lambda key: key == key.strip() and not {*key} & {*"▶\"'\n\r"} and not key.startswith("_dlt")
)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-10, 10)
    | st.integers()
    | st.sampled_from([2**53, 2**53 + 1, -(2**63), 2**63 - 1, 2**63, 10**30, 1739572215678])
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from(["", "2024-01-05", "2025-02-14T22:05:10Z", "2025-02-14T22:05:10.5+02:00"])
    | st.sampled_from(["\0", "\uf027x", "NaN", "{}", "🜁"])
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=20,
)
documents = st.dictionaries(keys, values, max_size=6)


def _spots(value: object, path: tuple = ()) -> Iterator[tuple]:
    yield path
    children = (
        value.items() if isinstance(value, dict)
        else enumerate(value) if isinstance(value, list)
        else ()
    )  # fmt: skip
    for key, child in children:
        yield from _spots(child, (*path, key))


SPOTS = [path for path in _spots(sample_document()) if path]


@st.composite
def mutated_samples(draw: st.DrawFn) -> dict:
    """The sample with a few values replaced, left out or put in."""
    document = sample_document()
    for path in draw(st.lists(st.sampled_from(SPOTS), min_size=1, max_size=4)):
        parent = document
        for key in path[:-1]:
            try:
                parent = parent[key]
            except (KeyError, IndexError, TypeError):
                parent = None
        if isinstance(parent, list) and path[-1] in range(len(parent)):
            parent[path[-1]] = draw(values)
        elif isinstance(parent, dict):
            action = draw(st.sampled_from(["replace", "leave out", "put in"]))
            if action == "leave out":
                parent.pop(path[-1], None)
            else:
                parent[path[-1] if action == "replace" else draw(keys)] = draw(values)
    return document


# --- the comparisons


def test_the_sample_is_flattened_as_dlt_flattens_it() -> None:
    _check_build([sample_document()])


def test_all_ways_agree_on_the_sample() -> None:
    assert _check_fast_against_odd([sample_document(), sample_document()])


@relaxed
@given(st.lists(documents, min_size=1, max_size=4), st.lists(st.integers(0, 3), max_size=2))
@example([{"x": 1}, {"x": "a"}, {"x": 1.5}, {"x": [1]}], [1, 2])
@example([{"x": [[1, [2]], [], [[]], None, {}, [{"y": 1}]]}], [])
@example([{"a_b": 1}, {"aB": 2, "a_b": 3}, {"aB": 4}], [])
@example([{"a": {"b": {"c": [3]}}}, {"a": [{"b": {"c": [1]}}]}, {"a": {"b": [{"c": [2]}]}}], [])
@example([{"x": 1.5}, {"x": 1}, {"x": 2**53 + 1}, {"x": 2.0**60}], [1])
@example([{"data": {"session": {"events": [{"props": {"a": 1}}, {"props": [1]}]}}}], [])
@example([{"data": {"session": {"events": [{"props": 5}], "options": {"": [None]}}}}, {}], [])
@example([{"data": {"session": {"options": {"a": "\\u0000"}}}}], [])
@example([{"data": {"session": {"options": {"\0": ["a\0"]}, "events": [{"props": "\0"}]}}}], [])
@example([{"options": {"a": 1}, "props": None}, {"data": {"session": {"options": {"a": 1}}}}], [])
@example([{"x": 1.5}, {"x": -(2**63)}], [1])
@example([{"data": {"enrichment": {"person": {"enrichedAt": at}}}} for at in INSTANTS], [])
def test_any_documents_are_flattened_as_dlt_flattens_them(
    documents: list[dict], cuts: list[int]
) -> None:
    _check_build(documents, [cut for cut in cuts if cut < len(documents)])


@relaxed
@given(st.lists(mutated_samples(), min_size=1, max_size=3), st.booleans())
def test_mutations_of_the_sample_are_flattened_as_dlt_flattens_them(
    documents: list[dict], is_cut: bool
) -> None:
    _check_build(documents, [1] if is_cut and len(documents) > 1 else [])


@relaxed
@given(st.lists(documents | mutated_samples(), min_size=1, max_size=3))
@example([{"x": [1, 1.5, None]}, {"x": []}])
@example([{"data": {"emailValidations": [{"email": "a"}], "validations": [{"email": "b"}]}}])
@example([{"created": 253402300799999}, {"created": -1.5}, {"created": 1739572215678.25}])
def test_both_ways_give_the_same_rows_keys_and_context_where_both_take_a_document(
    documents: list[dict],
) -> None:
    assume(_check_fast_against_odd(documents))


@relaxed
@given(st.lists(documents, min_size=1, max_size=3))
def test_the_same_events_built_twice_are_the_same_tables(documents: list[dict]) -> None:
    events = [(f"evt_{number}", to_body(document)) for number, document in enumerate(documents)]
    first, second = build(*events), build(*events)
    assert [name for name, _ in first] == [name for name, _ in second]
    assert all(one.equals(other) for (_, one), (_, other) in zip(first, second, strict=True))


@pytest.mark.parametrize("block_bytes", [1, 9_000, 20_000])
def test_the_size_of_a_block_changes_no_row(
    block_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = numbered_events(12)
    for number, document in enumerate(
        [{"x": 1, "new": [1]}, {"x": "a"}, {"aB": 1, "a_b": 2}, {"props": "\0"}, {"x": None}]
    ):
        events.insert(2 * number, (f"odd_{number}", to_body(document)))
    event_ids = [event_id for event_id, _ in events]
    _, plain_names = _expected([json.loads(body) for _, body in events])

    def cells() -> Cells:
        types = ColumnTypes()
        tables = [(name, dict(zip(t.column_names, t.columns, strict=True)))
                  for name, t in build(*events, types=types)]  # fmt: skip
        return _actual(tables, types, plain_names, event_ids)

    whole = cells()
    monkeypatch.setattr(pipelines.ahead, "BLOCK_BYTES", block_bytes)
    assert cells() == whole
