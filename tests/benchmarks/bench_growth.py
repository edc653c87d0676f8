"""Measure what loading costs as the warehouse grows, as a backlog grows, and when little waits.

    python tests/benchmarks/bench_growth.py --events 20000 --held 1000000 --rounds 5

Every figure is that of a whole process, `midbound load`, as a scheduler starts it.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import duckdb
from events import fill_spool, finalized_events
from turns import compare, take_turns

from pipelines.warehouse import LOADS_PER_JOINING

ROOT = Path(__file__).parent.parent.parent
LOAD = (sys.executable, "-m", "pipelines.cli", "load")
DONE, NOTHING_TO_DO = 0, 3
SMALL = 100
FILL_AT_ONCE = 20_000
_seeds = itertools.count(2)


class Cost(NamedTuple):
    """What one process took."""

    seconds: float
    peak_bytes: int


def main() -> None:
    """Measure the four figures, and print them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=20_000, help="of the smaller backlog")
    parser.add_argument("--held", type=int, default=1_000_000, help="events in the grown warehouse")
    parser.add_argument("--new", type=int, default=1000, help="events of one load into it")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="midbound-bench-") as name:
        bench = Bench(Path(name))
        bench.print_backlog(args.events, args.rounds)
        bench.print_growth(args.held, args.new, args.rounds)
        bench.print_small_runs(args.rounds)


class Bench:
    """Directories, each with a spool and a warehouse."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def print_backlog(self, count: int, rounds: int) -> None:
        """Load a backlog, and one of ten times as many events, into an empty warehouse."""
        costs: dict[str, list[Cost]] = {}
        counts = {f"{count:,} events": count, f"{10 * count:,} events": 10 * count}
        for _ in range(rounds):
            for name, each in counts.items():
                costs.setdefault(name, []).append(self._load_new("backlog", each, is_empty=True))
                print(f"  {name}: {costs[name][-1].seconds:.2f} s", file=sys.stderr, flush=True)
        base = next(iter(counts))
        print("\nTen times the events")
        print(compare({n: [c.seconds for c in found] for n, found in costs.items()}, base, "s"))
        memory = {n: [c.peak_bytes / 1e6 for c in found] for n, found in costs.items()}
        print("\nTheir peak of memory")
        print(compare(memory, base, "MB"))

    def print_growth(self, held: int, new: int, rounds: int) -> None:
        """Load new events into an empty warehouse, and into a grown one."""
        for start in range(0, held, FILL_AT_ONCE):
            self._load_new("grown", min(FILL_AT_ONCE, held - start))
            shutil.rmtree(self._directory / "grown" / "spool" / "loaded")
        grown = f"with {held:,} events"
        seconds = take_turns(
            ["empty", grown],
            rounds,
            lambda way: (
                self._load_new(
                    "empty" if way == "empty" else "grown", new, is_empty=way == "empty"
                ).seconds
            ),
            "s",
        )
        print(f"\nLoading {new:,} events into a warehouse")
        print(compare(seconds, "empty", "s"))
        joining = self._load_new("grown", new)
        while self._count_loads("grown") % LOADS_PER_JOINING:
            joining = self._load_new("grown", new)
        print(f"Every {LOADS_PER_JOINING}th load joins row groups: {joining.seconds:.1f} s")

    def print_small_runs(self, rounds: int) -> None:
        """Compare what cron does all day with an import of dlt."""
        self._load_new("small", SMALL)
        directory = self._directory / "small"
        dlt = "python -c 'import dlt'"
        measures = {
            dlt: lambda: _run((sys.executable, "-c", "import dlt"), directory, DONE),
            "nothing to do": lambda: _run(LOAD, directory, NOTHING_TO_DO),
            f"{SMALL} new events": lambda: self._load_new("small", SMALL),
        }
        seconds = take_turns(list(measures), rounds, lambda way: measures[way]().seconds, "s")
        print("\nSmall runs")
        print(compare(seconds, dlt, "s"))

    def _count_loads(self, name: str) -> int:
        path = str(self._directory / name / "midbound.duckdb")
        with duckdb.connect(path, read_only=True) as connection:
            return connection.execute("SELECT count(*) FROM midbound_data.loads").fetchone()[0]

    def _load_new(self, name: str, count: int, *, is_empty: bool = False) -> Cost:
        """Load events that nobody has seen; into a new warehouse if `is_empty`."""
        directory = self._directory / name
        if is_empty:
            shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(exist_ok=True)
        fill_spool(directory / "spool", finalized_events(count, next(_seeds)))
        return _run(LOAD, directory, DONE)


def _run(command: tuple[str, ...], directory: Path, code: int) -> Cost:
    environ = os.environ | {"PYTHONPATH": str(ROOT), "RUNTIME__DLTHUB_TELEMETRY": "false"}
    started_s = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=directory, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started_s
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != code:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}, not {code}")
    return Cost(seconds, usage.ru_maxrss * 1024)


if __name__ == "__main__":
    main()
