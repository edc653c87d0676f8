"""Lay out rows for a person: aligned columns, numbers to the right."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime


def format_table(names: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Give the rows under their names, as lines of text; None is left empty."""
    cells = [[_text(value) for value in row] for row in rows]
    widths = [max(len(text) for text in column) for column in zip(names, *cells, strict=True)]
    is_number = [
        all(isinstance(row[index], int | float | None) for row in rows)
        for index in range(len(names))
    ]
    lines = [_line(names, widths, is_number), "  ".join("-" * width for width in widths)]
    lines += [_line(row, widths, is_number) for row in cells]
    return "\n".join(lines)


def _line(texts: Sequence[str], widths: Sequence[int], is_number: Sequence[bool]) -> str:
    parts = [
        text.rjust(width) if right else text.ljust(width)
        for text, width, right in zip(texts, widths, is_number, strict=True)
    ]
    return "  ".join(parts).rstrip()


def _text(value: object) -> str:
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def show_count(count: int, noun: str, plural: str | None = None) -> str:
    """Write a number and what it counts, in the right form."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def show_instant(value: object) -> str:
    """Write an instant in UTC to the second; anything else as it is."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value) if value.endswith("Z") else value
        except ValueError:
            return str(value)
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return _text(value)
