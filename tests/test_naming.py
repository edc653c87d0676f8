"""Names end, fit everywhere, and are names that dlt leaves as they are."""

from __future__ import annotations

import pytest
from dlt.common.normalizers.naming.snake_case import NamingConvention
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipelines.naming import (
    MAX_NAME_LENGTH,
    collision_name,
    column_name,
    declared_tables,
    spell,
    table_name,
    variant_name,
)

DLT = NamingConvention(MAX_NAME_LENGTH)
keys = st.text(min_size=1, max_size=8) | st.sampled_from(
    ["id", "aB", "a_b", "a.b", "A B", "x", "_x", "x_", "1", "_1", "a__b", "k" * 300, "-", "日本"]
)
paths = st.lists(keys, min_size=1, max_size=9).map(tuple)


@settings(deadline=None, max_examples=1_000)
@given(paths)
@example(("x_", "_1", "é_", "a.b", "ᅤ.⪪⪞_", "-", "A B", "_I"))  # dlt shortens this one for ever
def test_any_name_fits_and_is_spelled_as_dlt_spells_it(path: tuple[str, ...]) -> None:
    column = column_name("events", path)
    table = table_name("events", path)
    names = [
        spell(path),
        column,
        variant_name(column, "timestamp"),
        collision_name(column, path),
        table,
        table_name(table, path),
        column_name(table, path),
    ]
    assert [DLT.normalize_path(name) for name in names] == names
    assert max(map(len, names)) <= MAX_NAME_LENGTH


def test_long_names_keep_their_ends_and_are_told_apart() -> None:
    one, other = (spell(("first", middle * 60, "last")) for middle in "ab")
    assert one.startswith("first__aaaa")
    assert one.endswith("aaaa__last")
    long = [spell(("k" * 60, str(number))) for number in range(1_000)]
    assert len({one, other, *long}) == len(long) + 2


@pytest.mark.parametrize("table", declared_tables())
def test_declared_names_are_short_enough_to_be_read_whole(table: str) -> None:
    assert all(len(name) <= MAX_NAME_LENGTH for name in [table, *declared_tables()[table]])
    assert table == DLT.normalize_path(table)
