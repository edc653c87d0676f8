"""Measure acknowledging: our receiver and its peers in turn, under the same load, as ratios.

    python tests/benchmarks/bench_receive.py --rounds 5 --seconds 5

`wrk` posts a body of 9 KB over 16 connections, every delivery under an id and a signature of its
own; generator and server share the machine. Each is also loaded while 200 slow clients hold
connections open.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from serving import head, sign
from spooling import sample_event
from turns import compare, take_turns
from ways_to_receive import WAYS, missing_for, serving

from pipelines.text_table import format_table
from receiver.segment import Spool, read_segment

HERE = Path(__file__).parent
CONNECTIONS = 16
BODY_BYTES = 9000
SLOW_CLIENTS = 200
COUNTED = "ours, its syncs counted"
COMPARED = [way for way in WAYS if way != COUNTED]
_RATE = re.compile(r"Requests/sec:\s+([\d.]+)")
_P99 = re.compile(r"99%\s+([\d.]+)(us|ms|s)\b")
_REQUESTS = re.compile(r"(\d+) requests in")
_REFUSED = re.compile(r"Non-2xx or 3xx responses: (\d+)")
_MS = {"us": 0.001, "ms": 1.0, "s": 1000.0}


@dataclass(frozen=True)
class Load:
    """What wrk has seen; only answers of 2xx count."""

    requests_per_s: float
    p99_ms: float
    count: int


class Bench:
    """A directory with the load and the servers' files."""

    def __init__(self, directory: Path, seconds: int) -> None:
        self._directory = directory
        self._seconds = seconds
        self.body = body_of_average_size()
        (directory / "body").write_bytes(self.body)

    def load(
        self,
        way: str,
        *,
        connections: int = CONNECTIONS,
        pause_ms: float = 0,
        slow_clients: int = 0,
    ) -> Load:
        """Start a server, load it, end it; count what it has on disk."""
        self._sign_deliveries()
        with serving(way, self._directory) as port, dawdling(port, slow_clients):
            text = self._wrk(port, connections, pause_ms)
        load = _read(text, self._seconds)
        if way.startswith("ours"):
            self._check_spool(load)
        return load

    def lines_per_sync(self, connections: int) -> float:
        """Give the lines that one sync makes durable, on average."""
        load = self.load(COUNTED, connections=connections)
        return load.count / (self._directory / "syncs").stat().st_size

    def _sign_deliveries(self) -> None:
        """Sign anew, so that no timestamp gets too old."""
        with (self._directory / "headers").open("w") as file:
            for number in range(10_000 * self._seconds):
                headers = sign(self.body, f"evt_{number}")
                file.write("\t".join(headers.values()) + "\n")

    def _wrk(self, port: int, connections: int, pause_ms: float) -> str:
        threads = min(2, connections)
        return subprocess.run(
            ["wrk", f"-t{threads}", f"-c{connections}", f"-d{self._seconds}s", "--latency",
             "-s", str(HERE / "load.lua"), f"http://127.0.0.1:{port}/webhooks/midbound", "--",
             "body", "headers", str(pause_ms)],
            cwd=self._directory, check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip

    def _check_spool(self, load: Load) -> None:
        paths = Spool(self._directory / "spool").ready_segments()
        line_count = sum(len(read_segment(path).lines) for path in paths)
        if line_count < load.count:
            raise RuntimeError(f"{load.count} acknowledged, but {line_count} in the spool")


def body_of_average_size() -> bytes:
    """Give the sample as it is sent, and as long as events are on average."""
    text = json.dumps(sample_event(), separators=(",", ":"))
    return f'{text[:-1]},"padding":"{"x" * (BODY_BYTES - len(text) - 13)}"}}'.encode()


def _read(text: str, seconds: int) -> Load:
    p99 = _P99.search(text)
    refused = _REFUSED.search(text)
    count = int(_REQUESTS.search(text)[1]) - (int(refused[1]) if refused else 0)
    return Load(requests_per_s=count / seconds, p99_ms=float(p99[1]) * _MS[p99[2]], count=count)


@contextlib.contextmanager
def dawdling(port: int, count: int) -> Iterator[None]:
    """Hold connections that have sent headers and then nothing; open a new one for each cut."""
    is_over = threading.Event()
    request = head("content-length: 9000")

    def run() -> None:
        held = [_open(port, request) for _ in range(count)]
        while not is_over.wait(0.5):
            held = [each if _is_open(each) else _open(port, request) for each in held]
        for connection in held:
            connection.close()

    thread = threading.Thread(target=run, daemon=True)
    if count:
        thread.start()
    try:
        yield
    finally:
        is_over.set()
        if count:
            thread.join()


def _open(port: int, request: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=5)
    connection.sendall(request)
    connection.setblocking(False)
    return connection


def _is_open(connection: socket.socket) -> bool:
    try:
        return bool(connection.recv(1))
    except BlockingIOError:
        return True
    except OSError:
        return False


def main() -> None:
    """Take turns at full load, at half load, beside slow clients, and count the syncs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--ways", nargs="*", default=COMPARED, choices=COMPARED)
    args = parser.parse_args()
    if shutil.which("wrk") is None:
        sys.exit("wrk is missing: apt-get install wrk")
    ways = []
    for way in args.ways:
        if (missing := missing_for(way)) is None:
            ways.append(way)
        else:
            print(f"left out: {way}: {missing}")
    with tempfile.TemporaryDirectory(prefix="midbound-bench-") as name:
        run(Bench(Path(name), args.seconds), ways, args.rounds)


def run(bench: Bench, ways: list[str], rounds: int) -> None:
    """Measure and print."""
    full = take_turns(ways, rounds, lambda way: bench.load(way).requests_per_s, "requests/s")
    print(f"\nAcknowledged, {CONNECTIONS} connections, {len(bench.body) / 1000:.1f} kB bodies")
    print(compare(full, "ours", "requests/s", inverted=True))

    pause_ms = _pause_for_half_ms(statistics.median(full["ours"]))
    half = take_turns(
        ["ours", "an empty route"],
        rounds,
        lambda way: bench.load(way, pause_ms=pause_ms).p99_ms,
        "ms (p99)",
    )
    print("\np99 at half of the load that ours can hold")
    print(compare(half, "an empty route", "ms"))

    slow = take_turns(
        ways,
        rounds,
        lambda way: bench.load(way, slow_clients=SLOW_CLIENTS).requests_per_s,
        "requests/s",
    )
    print(f"\nAcknowledged beside {SLOW_CLIENTS} clients that send headers and then nothing")
    print(format_table(("way", "median requests/s"), _medians(slow)))

    syncs = {
        str(connections): [bench.lines_per_sync(connections) for _ in range(rounds)]
        for connections in (1, 4, 16, 64)
    }
    print("\nGroup commit")
    print(format_table(("connections", "lines a sync"), _medians(syncs)))


def _pause_for_half_ms(requests_per_s: float) -> int:
    """Give the pause with which each connection asks for half of what it could have."""
    return max(1, round(CONNECTIONS / requests_per_s * 1000))


def _medians(figures: dict[str, list[float]]) -> list[tuple[str, str]]:
    return [(name, f"{statistics.median(found):,.1f}") for name, found in figures.items()]


if __name__ == "__main__":
    main()
