"""Measure events that do not fit their declared types: a few among others, and nothing but them.

    python tests/benchmarks/bench_odd.py --events 20000 --odd-events 2000 --rounds 5

An odd event holds a text where a number is declared, so it goes value by value, and its text into
a variant, as dlt's own JSON way would have it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from bench_load import run
from events import fill_spool, finalized_events, write_bodies
from turns import compare, take_turns

from pipelines.demo.generate import GeneratedEvent

FEW = 100  # one in so many


def main() -> None:
    """Make the spools, take turns, print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=20_000)
    parser.add_argument("--odd-events", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    clean, mixed = "none odd", "one in a hundred odd"
    with tempfile.TemporaryDirectory(prefix="midbound-bench-") as name:
        directory = Path(name)
        events = list(finalized_events(args.events))
        fill_spool(directory / clean / "spool", events)
        fill_spool(directory / mixed / "spool", make_odd(events, FEW))
        seconds = take_turns(
            [clean, mixed], args.rounds, lambda each: run("ours", directory / each), "s"
        )
        print(f"\nLoading {args.events:,} events")
        print(compare(seconds, clean, "s"))

        only_odd = list(make_odd(events[: args.odd_events], 1))
        fill_spool(directory / "spool", only_odd)
        write_bodies(directory / "events.jsonl", only_odd)
        seconds = take_turns(
            ["ours", "dlt at its best"], args.rounds, lambda way: run(way, directory), "s"
        )
        print(f"\nLoading {len(only_odd):,} odd events")
        print(compare(seconds, "ours", "s"))


def make_odd(events: Iterable[GeneratedEvent], one_in: int) -> Iterator[GeneratedEvent]:
    """Spoil one in so many events."""
    for number, event in enumerate(events):
        if number % one_in:
            yield event
            continue
        document = json.loads(event.body)
        document["data"]["session"]["screen"]["width"] = "wide"
        body = json.dumps(document, separators=(",", ":")).encode()
        yield GeneratedEvent(event.webhook_id, event.type, body)


if __name__ == "__main__":
    main()
