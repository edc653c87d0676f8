"""Rows for a person: aligned, numbers to the right, instants to the second."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from pipelines.text_table import format_table, show_count, show_instant


def test_columns_are_aligned_and_numbers_stand_to_the_right() -> None:
    assert format_table(("table", "rows"), [("events", 1234), ("skills", None)]) == (
        "table    rows\n"
        "------  -----\n"
        "events  1,234\n"
        "skills"
    )  # fmt: skip


def test_a_table_without_rows_is_its_head() -> None:
    assert format_table(("a", "b"), []) == "a  b\n-  -"


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 events"), (1, "1 event"), (2, "2 events"), (1234, "1,234 events")]
)
def test_a_count_has_the_right_form(count: int, text: str) -> None:
    assert show_count(count, "event") == text


def test_an_irregular_plural_is_given() -> None:
    assert show_count(1, "delivery", "deliveries") == "1 delivery"
    assert show_count(2, "delivery", "deliveries") == "2 deliveries"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (datetime(2026, 11, 23, 17, 22, 5, 999_999, tzinfo=UTC), "2026-11-23T17:22:05Z"),
        (
            datetime(2026, 11, 23, 18, 22, 5, tzinfo=timezone(timedelta(hours=1))),
            "2026-11-23T17:22:05Z",
        ),
        ("2026-11-23T17:22:05.123456Z", "2026-11-23T17:22:05Z"),
        ("JAZZ", "JAZZ"),
        (None, ""),
        (1234, "1,234"),
    ],
)
def test_an_instant_is_shown_in_utc_to_the_second(value: object, text: str) -> None:
    assert show_instant(value) == text
