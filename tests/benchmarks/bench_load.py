"""Measure loading: our way and its peers in turn, on the same events, as ratios.

    python tests/benchmarks/bench_load.py --events 20000 --rounds 5

Prints the median of each way and of the ratios to ours, taken round by round, so that a
machine that drifts drifts for both.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from pipelines.demo.generate import GeneratedEvent, generate_events
from pipelines.text_table import format_table
from receiver.config import SpoolSettings
from receiver.record import Delivery
from receiver.segment import Spool
from receiver.spool import Writer

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from ways_to_load import WAYS  # noqa: E402 it lies beside this file, not in a package

FINALIZED = frozenset({"identity.session.finalized"})


def main() -> None:
    """Make the events, take turns, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=list(WAYS))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="midbound-bench-") as name:
        directory = Path(name)
        size_bytes = make_events(directory, args.events)
        print(f"{args.events:,} finalized events, {size_bytes / args.events / 1000:.1f} kB each")
        seconds = take_turns(directory, args.ways, args.rounds)
    print(format_table(("way", "median s", "ours is faster by", "worst", "best"), _rows(seconds)))


def make_events(directory: Path, count: int) -> int:
    """Write the events as plain lines and as sealed segments; give the bytes of the bodies."""
    events = list(generate_events(count, types=FINALIZED))
    with (directory / "events.jsonl").open("wb") as lines:
        lines.writelines(event.body + b"\n" for event in events)
    _fill_spool(directory / "spool", events)
    return sum(len(event.body) for event in events)


def _fill_spool(path: Path, events: list[GeneratedEvent]) -> None:
    spool = Spool(path)
    spool.create()
    writer = Writer(spool, SpoolSettings(path=path))
    for start in range(0, len(events), 500):
        futures = [
            writer.submit(
                Delivery(
                    webhook_id=event.webhook_id,
                    webhook_timestamp="1795454525",
                    webhook_signature="v1,bm90IGxvb2tlZCBhdA==",
                    received_at="2026-11-23T17:22:05.123456Z",
                    body=event.body,
                )
            )
            for event in events[start : start + 500]
        ]
        for future in futures:
            future.result()
    writer.close()


def take_turns(directory: Path, ways: list[str], rounds: int) -> dict[str, list[float]]:
    """Run each way once a round, and give the seconds of each."""
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way in ways:
            seconds[way].append(_run(way, directory))
            print(f"  {way}: {seconds[way][-1]:.2f} s", file=sys.stderr, flush=True)
    return seconds


def _run(way: str, directory: Path) -> float:
    done = subprocess.run(
        [sys.executable, str(HERE / "ways_to_load.py"), way, str(directory)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return float(done.stdout.rsplit("seconds ", 1)[1])


def _rows(seconds: dict[str, list[float]]) -> list[tuple[str, str, str, str, str]]:
    base = seconds.get("ours") or next(iter(seconds.values()))
    rows = []
    for way, taken in seconds.items():
        ratios = sorted(other / our for other, our in zip(taken, base, strict=True))
        shown = [f"{ratio:.2f}" for ratio in (statistics.median(ratios), ratios[0], ratios[-1])]
        rows.append((way, f"{statistics.median(taken):.2f}", *shown))
    return rows


if __name__ == "__main__":
    main()
