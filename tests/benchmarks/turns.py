"""Take turns and compare: every way once a round, ratios round by round.

A machine that drifts, drifts for all ways of a round; so ratios are claimed, and times are not.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Mapping, Sequence

from pipelines.text_table import format_table


def take_turns(
    ways: Sequence[str], rounds: int, measure: Callable[[str], float], unit: str
) -> dict[str, list[float]]:
    """Measure each way once a round: A B C, A B C; give the figures of each."""
    figures: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(1, rounds + 1):
        for way in ways:
            figure = measure(way)
            figures[way].append(figure)
            print(f"  round {number}, {way}: {figure:,.3g} {unit}", file=sys.stderr, flush=True)
    return figures


def ratios(figures: Mapping[str, Sequence[float]], way: str, base: str) -> list[float]:
    """Give way / base of each round, lowest first."""
    return sorted(one / other for one, other in zip(figures[way], figures[base], strict=True))


def compare(
    figures: Mapping[str, Sequence[float]], base: str, unit: str, *, inverted: bool = False
) -> str:
    """Write a table: the median of each way, and of its ratios to the base with their range.

    `inverted` gives base / way, where more is better.
    """
    title = f"{base} / it" if inverted else f"it / {base}"
    rows = []
    for way, found in figures.items():
        pair = (base, way) if inverted else (way, base)
        each = ratios(figures, *pair)
        shown = [f"{ratio:.2f}" for ratio in (statistics.median(each), each[0], each[-1])]
        rows.append((way, f"{statistics.median(found):,.3g}", *shown))
    return format_table(("way", f"median {unit}", title, "lowest", "highest"), rows)
