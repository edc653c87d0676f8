"""Measure how soon the receiver answers, and how fast it recovers what a dead one has left.

    python tests/benchmarks/bench_start.py --recover-mb 1000 --rounds 5

Recovery is compared with `cat` of the same file and a CRC over it.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from events import delivery_of, finalized_events
from serving import running
from turns import compare, take_turns

from receiver.record import encode_line, segment_seed
from receiver.segment import Spool

NAME = "20260101T000000.000000Z-1-000000"
CAT_AND_CRC = (
    "import subprocess, sys, zlib\n"
    "cat = subprocess.Popen(['cat', sys.argv[1]], stdout=subprocess.PIPE)\n"
    "crc = 0\n"
    "while piece := cat.stdout.read(1 << 20):\n"
    "    crc = zlib.crc32(piece, crc)\n"
)
RECOVER = (
    "import sys; from pathlib import Path; from receiver.segment import Spool;"
    "from receiver.spool import recover; assert recover(Spool(Path(sys.argv[1])))"
)


def main() -> None:
    """Measure both, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recover-mb", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="midbound-bench-") as name:
        directory = Path(name)
        print_start(directory / "start", args.rounds)
        print_recovery(directory, args.recover_mb * 1_000_000, args.rounds)


def print_start(root: Path, rounds: int) -> None:
    """Start the receiver with an empty spool, and wait for its first answer."""
    seconds = []
    for _ in range(rounds):
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        began_at_s = time.perf_counter()
        with running(root) as server:
            server.wait_until_up()
            seconds.append(time.perf_counter() - began_at_s)
    print(f"first answer after {statistics.median(seconds):.2f} s (median of {rounds})")


def print_recovery(directory: Path, size_bytes: int, rounds: int) -> None:
    """Recover an open segment of this size, and read it with other means."""
    left = directory / "left.jsonl"
    _write_open_segment(left, size_bytes)
    spool = Spool(directory / "spool")
    spool.create()

    def measure(way: str) -> float:
        path = spool.open / f"{NAME}.jsonl"
        for old in spool.ready_segments():
            old.unlink()
        shutil.copy(left, path)
        if way == "cat and CRC":
            return _time(CAT_AND_CRC, path)
        return _time(RECOVER, spool.path)

    seconds = take_turns(["cat and CRC", "recovery"], rounds, measure, "s")
    print(f"\nAn open segment of {left.stat().st_size / 1e6:,.0f} MB")
    print(compare(seconds, "cat and CRC", "s"))


def _write_open_segment(target: Path, size_bytes: int) -> None:
    """Write lines without a seal, until there are so many bytes."""
    events = list(finalized_events(1000))
    seed = segment_seed(NAME)
    with target.open("wb") as file:
        for n, event in enumerate(itertools.cycle(events)):
            if file.tell() >= size_bytes:
                return
            file.write(encode_line(delivery_of(event), n=n, seed=seed))


def _time(script: str, path: Path) -> float:
    began_at_s = time.perf_counter()
    subprocess.run([sys.executable, "-c", script, str(path)], check=True, stderr=subprocess.DEVNULL)
    return time.perf_counter() - began_at_s


if __name__ == "__main__":
    main()
