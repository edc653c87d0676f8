"""Measure loading: our way and its peers in turn, on the same events, as ratios.

    python tests/benchmarks/bench_load.py --events 20000 --rounds 5

Prints the median of each way, and of its ratios to ours.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from events import fill_spool, finalized_events, write_bodies
from turns import compare, take_turns
from ways_to_load import WAYS

HERE = Path(__file__).parent


def main() -> None:
    """Make the events, take turns, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=list(WAYS))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="midbound-bench-") as name:
        directory = Path(name)
        events = list(finalized_events(args.events))
        write_bodies(directory / "events.jsonl", events)
        fill_spool(directory / "spool", events)
        fill_spool(directory / "one", events[:1])
        size_bytes = sum(len(event.body) for event in events) / len(events)
        seconds = take_turns(args.ways, args.rounds, lambda way: run(way, directory), "s")
    print(f"\nLoading {args.events:,} finalized events of {size_bytes / 1000:.1f} kB")
    print(compare(seconds, args.ways[0], "s"))


def run(way: str, directory: Path) -> float:
    """Load everything one way in a process of its own; give the seconds."""
    done = subprocess.run(
        [sys.executable, str(HERE / "ways_to_load.py"), way, str(directory)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return float(done.stdout.rsplit("seconds ", 1)[1])


if __name__ == "__main__":
    main()
