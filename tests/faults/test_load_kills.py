"""A load killed at every call that changes a disk or a database: the next run alone repairs it.

strace kills the process at the entry of its k-th fsync, rename, unlink, write and so on, so
that the call does not run any more: a kill before the call after it is a kill behind it. An
undisturbed load, traced, says which calls there are and what the warehouse has to hold.

`TORTURE_LOAD_KILLS` sets how many calls of a load are killed, `TORTURE_LOAD_CUTS` how often the
power is cut.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import random
import re
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mounts import mounted
from needs import need_commands
from postgres_server import PostgresServer, postgres_server
from serving import wait_until
from sizes import LIMIT_S, size
from spools import Place, numbered_events, sample_document, to_body

from pipelines.exit_codes import ExitCode

__all__ = ["postgres_server"]  # a fixture

ALL = 10_000  # more calls than a load makes
KILLS = size("LOAD_KILLS", usual=24, torture=ALL)
CUTS = size("LOAD_CUTS", usual=4, torture=200)
SEED = random.SystemRandom().randrange(2**32)
ROOT = Path(__file__).parents[2]
PROCESSES = 2
TIMEOUT_S = 120.0
MARGIN_S = 30.0  # for a load to say where it hangs
CHANGES = "fsync fdatasync rename unlink unlinkat rmdir write pwrite64 ftruncate".split()
REPAIRED = {ExitCode.DONE, ExitCode.NOTHING_TO_DO}

# Starts each load as a fork of a process that has imported everything: that takes longer than
# the load. A traced load waits until strace has it, without a call: a process that strace finds
# within a call, or one that had stopped itself, is traced wrongly or stays stopped for ever, one in
# a thousand. One that hangs says where.
NURSERY = """
import faulthandler, json, mmap, os, sys
import pipelines.packages, pipelines.verbs.load, dlt.destinations.impl.duckdb.duck
from pipelines.cli import main

for order in map(json.loads, sys.stdin):
    pid = os.fork()
    if pid == 0:
        os.chdir(order["directory"])
        os.environ.update(order["environ"])
        log = os.open("log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        faulthandler.dump_traceback_later(order["timeout_s"], exit=True)
        if order["gate"]:
            gate = mmap.mmap(os.open(order["gate"], os.O_RDWR), 2)
            gate[0] = 1
            while not gate[1]:
                pass
        code = main(["load"])
        os._exit(code)  # what ends the libraries' threads looks for them in vain after a fork
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Nursery:
    """A process that runs `midbound load`, one at a time, as often as it is told to."""

    def __init__(self) -> None:
        # With one worker all calls of a load come from one thread, where strace counts them.
        environ = os.environ | {"PYTHONPATH": str(ROOT), "LOAD__WORKERS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", NURSERY],
            env=environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,  # so that `select` knows of every line that was not read
        )
        self._pid = 0

    def start(
        self,
        directory: Path,
        environ: Mapping[str, str] | None = None,
        gate: Path | None = None,
    ) -> int:
        order = {
            "directory": str(directory),
            "environ": environ or {},
            "gate": str(gate or ""),
            "timeout_s": TIMEOUT_S,
        }
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        self._pid = self._read_number()
        return self._pid

    def wait(self) -> int:
        """Give the exit code of the load; kill it if even its own watch does not end it."""
        try:
            return self._read_number()
        except TimeoutError:
            os.kill(self._pid, signal.SIGKILL)
            self._read_number()
            raise

    def _read_number(self) -> int:
        if not select.select([self._process.stdout], [], [], TIMEOUT_S + MARGIN_S)[0]:
            raise TimeoutError(f"process {self._pid} did not end")
        return int(self._process.stdout.readline())

    def load(self, directory: Path, environ: Mapping[str, str] | None = None) -> int:
        self.start(directory, environ)
        return self.wait()

    def trace(
        self, directory: Path, calls: str, *options: str, environ: Mapping[str, str] | None = None
    ) -> tuple[int, list[str]]:
        """Load under strace; give the exit code and the calls of the load's first thread."""
        output, messages, gate = (directory / name for name in ("trace", "messages", "gate"))
        gate.write_bytes(b"\0\0")
        pid = self.start(directory, environ, gate)
        command = ["strace", "-f", "-y", "-s", "60", "-o", str(output), "-p", str(pid)]
        command += ["-e", f"trace={calls}", *options]
        wait_until(lambda: gate.read_bytes()[0], "a load at its gate", TIMEOUT_S)
        with messages.open("w") as file, subprocess.Popen(command, stderr=file) as tracer:
            wait_until(lambda: " attached" in messages.read_text(), "strace", TIMEOUT_S)
            with gate.open("r+b") as opened:
                opened.write(b"\1\1")
            code = self.wait()
            tracer.wait(TIMEOUT_S)
        own = re.compile(rf"{pid} +(\w+\(.*)")
        return code, [found[1] for line in read_lines(output) if (found := own.match(line))]

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(TIMEOUT_S)
        self._process.stdout.close()


def read_lines(path: Path) -> list[str]:
    return path.read_text(errors="replace").splitlines()


@pytest.fixture(scope="module")
def nurseries() -> Iterator[queue.SimpleQueue[Nursery]]:
    need_commands("strace")
    all_of_them = [Nursery() for _ in range(PROCESSES)]
    free: queue.SimpleQueue[Nursery] = queue.SimpleQueue()
    for nursery in all_of_them:
        free.put(nursery)
    yield free
    for nursery in all_of_them:
        nursery.close()


@contextlib.contextmanager
def borrowed(nurseries: queue.SimpleQueue[Nursery]) -> Iterator[Nursery]:
    nursery = nurseries.get(timeout=TIMEOUT_S)
    try:
        yield nursery
    finally:
        nurseries.put(nursery)


# Which calls there are


@dataclass(frozen=True)
class Point:
    """The k-th call of its kind."""

    call: str
    k: int
    text: str

    @property
    def is_of_the_cache(self) -> bool:
        """Whether it only touches what the next run throws away, or what a person reads."""
        return "/work/" in self.text or re.match(r"write\([12]<", self.text) is not None


def list_points(lines: Sequence[str]) -> list[Point]:
    counts: dict[str, int] = {}
    points = []
    for line in lines:
        call = line.partition("(")[0]
        counts[call] = counts.get(call, 0) + 1
        points.append(Point(call, counts[call], line))
    return points


def choose(points: Sequence[Point], count: int) -> list[Point]:
    """Choose this many, over the whole load; most where the spool or the warehouse changes."""
    if KILLS >= ALL:
        return list(points)
    cache = [point for point in points if point.is_of_the_cache]
    other = [point for point in points if not point.is_of_the_cache]
    return [*spread(other, count - count // 4), *spread(cache, count // 4)]


def spread(points: Sequence[Any], count: int) -> list[Any]:
    """Choose from the first to the last, evenly."""
    step = (len(points) - 1) / max(count - 1, 1)
    return [points[round(number * step)] for number in range(min(count, len(points)))]


def usual_count(share: float) -> int:
    return 0 if KILLS >= ALL else max(1, round(KILLS * share))


# DuckDB


@dataclass(frozen=True)
class State:
    """What has to be the same after every kill."""

    content: dict[str, str]
    outcomes: list[tuple]


def read_state(place: Place) -> State:
    """Read a warehouse after a run, in which nothing may be left of another."""
    assert place.orphans() == {}
    assert {row["status"] for row in place.rows("loads")} == {"done"}
    assert place.spool.ready_segments() == []
    assert place.spool.open_segments() == []
    return State(place.content(), place.outcomes())


def first_load(place: Place, _nursery: Nursery) -> None:
    place.send("a", *numbered_events(6))


def later_load(place: Place, nursery: Nursery) -> None:
    """Fill the warehouse, then send new events, one with new columns and a table, and a repeat."""
    place.send("a", *numbered_events(3))
    assert nursery.load(place.root) == ExitCode.DONE
    grown = sample_document() | {"id": "evt_grown", "brandNew": 1, "list": [{"a": 1}, {"a": 2}]}
    place.send("b", *numbered_events(4, first=2), ("evt_grown", to_body(grown)))


Prepare = Callable[[Place, Nursery], None]


@pytest.mark.timeout(LIMIT_S)
@pytest.mark.parametrize("prepare", [first_load, later_load])
def test_the_next_run_alone_repairs_a_load_killed_at_any_change(
    tmp_path: Path, nurseries: queue.SimpleQueue[Nursery], prepare: Prepare
) -> None:
    before = tmp_path / "before"
    before.mkdir()
    with borrowed(nurseries) as nursery:
        prepare(Place(before), nursery)
        undisturbed = copy_of(before, tmp_path / "undisturbed")
        code, lines = nursery.trace(undisturbed, ",".join(CHANGES))
    assert code == ExitCode.DONE
    wanted = read_state(Place(undisturbed))
    points = list_points(lines)
    chosen = choose(points, usual_count(0.5))

    def kill_and_repair(point: Point) -> bool:
        directory = copy_of(before, tmp_path / f"{point.call}-{point.k}")
        with borrowed(nurseries) as nursery:
            killed = kill_at(nursery, directory, point)
            assert nursery.load(directory) in REPAIRED, (point, (directory / "log").read_text())
        assert read_state(Place(directory)) == wanted, point
        shutil.rmtree(directory)
        return killed

    with ThreadPoolExecutor(PROCESSES) as pool:
        reached = list(pool.map(kill_and_repair, chosen))
    print(f"{prepare.__name__}: {len(points):,} changes, {sum(reached)} of {len(chosen)} killed")
    print(f"{len(wanted.outcomes)} deliveries after each repair: 0 lost, 0 doubled, 0 orphans")
    assert sum(reached) >= 0.9 * len(chosen)


def copy_of(directory: Path, to: Path) -> Path:
    return Path(shutil.copytree(directory, to))


def kill_at(
    nursery: Nursery, directory: Path, point: Point, environ: Mapping[str, str] | None = None
) -> bool:
    """Kill a load at this call; say whether it came so far."""
    inject = f"inject={point.call}:signal=KILL:when={point.k}"
    code, _ = nursery.trace(directory, point.call, "-e", inject, environ=environ)
    assert code in {-signal.SIGKILL, ExitCode.DONE}, (point, (directory / "log").read_text())
    return code == -signal.SIGKILL


# PostgreSQL


@pytest.mark.timeout(LIMIT_S)
def test_the_next_run_alone_repairs_a_load_into_postgresql_killed_at_any_message(
    tmp_path: Path,
    nurseries: queue.SimpleQueue[Nursery],
    postgres_server: PostgresServer,
) -> None:
    """Kill before and after messages, and while the server works on them."""
    before = tmp_path / "before"
    before.mkdir()
    Place(before).send("a", *numbered_events(6))
    undisturbed = copy_of(before, tmp_path / "undisturbed")
    database = postgres_server.new_database()
    with borrowed(nurseries) as nursery:
        code, lines = nursery.trace(undisturbed, "sendto,poll", environ=database.environ)
    assert code == ExitCode.DONE, (undisturbed / "log").read_text()
    wanted = database.settled_tables()
    points = list_points(lines)
    chosen = points if KILLS >= ALL else choose_messages(points)

    def kill_and_repair(point: Point) -> bool:
        directory = copy_of(before, tmp_path / f"{point.call}-{point.k}")
        database = postgres_server.new_database()
        with borrowed(nurseries) as nursery:
            killed = kill_at(nursery, directory, point, database.environ)
            code = nursery.load(directory, database.environ)
            assert code in REPAIRED, (point, (directory / "log").read_text())
        assert Place(directory).spool.ready_segments() == []
        assert database.settled_tables() == wanted, point
        return killed

    with ThreadPoolExecutor(PROCESSES) as pool:
        reached = list(pool.map(kill_and_repair, chosen))
    print(f"PostgreSQL: {len(points):,} messages, {sum(reached)} of {len(chosen)} killed")
    print(f"{len(wanted['deliveries'])} deliveries after each: 0 lost, 0 doubled, 0 orphans")
    assert sum(reached) >= 0.9 * len(chosen)


def choose_messages(points: Sequence[Point]) -> list[Point]:
    """Choose commits that are not sent any more, and waits for what was sent last."""
    sent = [number for number, point in enumerate(points) if point.call == "sendto"]
    commits = [number for number in sent if "COMMIT" in points[number].text]
    # Before each commit is sent, the answer to the statement before it was waited for.
    within = [number - 1 for number in commits if points[number - 1].call == "poll"]
    behind = [number + 1 for number in commits if points[number + 1].call == "poll"]
    assert within
    assert behind
    return [
        points[number] for numbers in (within, commits, behind) for number in spread(numbers, 2)
    ]


# Power cuts


@pytest.mark.timeout(LIMIT_S)
def test_the_next_run_alone_repairs_a_load_whose_power_was_cut(
    tmp_path: Path, nurseries: queue.SimpleQueue[Nursery]
) -> None:
    print(f"seed {SEED}")
    chance = random.Random(SEED)
    before = tmp_path / "before"
    before.mkdir()
    with borrowed(nurseries) as nursery, mounted("ext4", tmp_path) as mount:
        later_load(Place(before), nursery)
        undisturbed = copy_of(before, tmp_path / "undisturbed")
        started_s = time.monotonic()
        assert nursery.load(undisturbed) == ExitCode.DONE
        usual_s = time.monotonic() - started_s
        wanted = read_state(Place(undisturbed))
        cut_count = 0
        for number in range(CUTS):
            directory = copy_of(before, mount.path / str(number))
            os.sync()
            pid = nursery.start(directory)
            is_over = threading.Event()
            is_over.wait(chance.uniform(0, usual_s))
            mount.cut_power()
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            cut_count += nursery.wait() != ExitCode.DONE
            mount.remount()
            assert nursery.load(directory) in REPAIRED, (directory / "log").read_text()
            assert read_state(Place(directory)) == wanted
            shutil.rmtree(directory)
    print(f"{CUTS} power cuts, {cut_count} of them within a load: 0 lost, 0 doubled, 0 orphans")
    assert cut_count > 0
