"""A load beside another, beside an analyst, on a full disk, and with what it relies on lost.

Where waiting helps it waits, otherwise it says what is wrong; and the next run is always exact.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from dlt.pipeline.pipeline import Pipeline
from needs import need_mounts
from postgres_server import Database, PostgresServer, Tables, database, postgres, postgres_server
from serving import wait_until
from spools import Place, numbered_events, sample_document, to_body

from pipelines.cli import main
from pipelines.destination import DEFAULT_DATASET
from pipelines.errors import WarehouseError
from pipelines.exit_codes import ExitCode
from pipelines.load import run_load
from pipelines.warehouse import Warehouse
from receiver.config import read_settings

__all__ = ["database", "postgres", "postgres_server"]  # fixtures

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 120.0
# Steps of a load: before it asks the warehouse anything, before dlt loads, and before it counts
# what arrived.
START = ("pipelines.packages", "load_packages")
LOADING = ("dlt.pipeline.pipeline:Pipeline", "load")
MIDDLE = ("pipelines.packages:PackageLoader", "_verify")
# `midbound load` that waits, before a step, until it is told to go on.
PAUSED_LOAD = """
import pkgutil, sys
from pipelines.cli import main
owner, name = pkgutil.resolve_name(sys.argv[1]), sys.argv[2]
step = getattr(owner, name)
def wait_and_step(*arguments, **named):
    print("paused", flush=True)
    sys.stdin.readline()
    return step(*arguments, **named)
setattr(owner, name, wait_and_step)
sys.exit(main(["load"]))
"""
# An analyst's tool.
HOLD = """
import sys, duckdb
connection = duckdb.connect("midbound.duckdb", read_only=sys.argv[1] == "reading")
print("held", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.chdir(tmp_path)
    return Place(tmp_path)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What six numbered events are in a warehouse that nothing has disturbed."""
    place = Place(tmp_path_factory.mktemp("undisturbed"))
    place.send("a", *numbered_events(6))
    assert load(place.root).returncode == ExitCode.DONE
    return place.content()


def environ_of(more: Mapping[str, str] | None = None) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT)} | dict(more or {})


def load(root: Path, environ: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run `midbound load` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "pipelines.cli", "load"],
        cwd=root,
        env=environ_of(environ),
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_S,
    )


def errors_of(code: str, root: Path) -> Path:
    return root / ("loader" if code == PAUSED_LOAD else "holder")


@contextlib.contextmanager
def process(root: Path, code: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Start Python code that waits for a line; end it in any case."""
    with errors_of(code, root).open("w") as errors:
        started = subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            cwd=root,
            env=environ_of(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    try:
        yield started
    finally:
        if started.poll() is None:
            started.kill()
        started.communicate(timeout=TIMEOUT_S)


def go_on(started: subprocess.Popen[str]) -> None:
    with contextlib.suppress(BrokenPipeError):
        started.stdin.write("\n")
        started.stdin.flush()


def assert_exact(place: Place, expected: Mapping[str, str], delivery_count: int = 6) -> None:
    assert place.content() == expected
    assert place.orphans() == {}
    assert place.counts()["deliveries"] == delivery_count
    assert {row["status"] for row in place.rows("loads")} == {"done"}
    assert place.spool.ready_segments() == []


# Two at once, and analysts


def test_a_second_loader_is_busy_at_once_and_disturbs_nothing(
    place: Place, expected: dict[str, str]
) -> None:
    place.send("a", *numbered_events(6))
    with process(place.root, PAUSED_LOAD, *MIDDLE) as first:
        assert first.stdout.readline() == "paused\n"
        second = load(place.root)  # returns, although the first one still waits
        assert first.poll() is None
        go_on(first)
        assert first.wait(TIMEOUT_S) == ExitCode.DONE
    assert second.returncode == ExitCode.BUSY
    assert f"another load is running (process {first.pid} holds " in second.stderr
    assert_exact(place, expected)


@pytest.mark.parametrize("way", ["reading", "writing"])
def test_a_load_waits_for_an_analyst_says_for_whom_and_goes_on(
    place: Place, expected: dict[str, str], way: str
) -> None:
    place.send("a", *numbered_events(3))
    assert load(place.root).returncode == ExitCode.DONE
    place.send("b", *numbered_events(3, first=3))
    with process(place.root, PAUSED_LOAD, *START) as loader:
        assert loader.stdout.readline() == "paused\n"
        with process(place.root, HOLD, way) as holder:
            assert holder.stdout.readline() == "held\n"
            go_on(loader)
            errors = errors_of(PAUSED_LOAD, place.root)
            said = f"(PID {holder.pid}) holds the warehouse"
            wait_until(lambda: said in errors.read_text(), "the name of the holder", TIMEOUT_S)
            assert loader.poll() is None
            go_on(holder)
            assert loader.wait(TIMEOUT_S) == ExitCode.DONE, errors.read_text()
    assert_exact(place, expected)


@pytest.mark.parametrize("way", ["reading", "writing"])
def test_no_analyst_gets_in_between_two_steps_of_a_load(
    place: Place, expected: dict[str, str], way: str
) -> None:
    place.send("a", *numbered_events(6))
    with process(place.root, PAUSED_LOAD, *MIDDLE) as loader:
        assert loader.stdout.readline() == "paused\n"
        with process(place.root, HOLD, way) as holder:
            assert holder.stdout.readline() == ""
            assert holder.wait(TIMEOUT_S) == 1
        assert f"(PID {loader.pid})" in errors_of(HOLD, place.root).read_text()
        go_on(loader)
        assert loader.wait(TIMEOUT_S) == ExitCode.DONE
    assert_exact(place, expected)


# A destination that dies


@pytest.fixture(scope="module")
def expected_rows(
    postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> Tables:
    """The same in PostgreSQL."""
    place, database = Place(tmp_path_factory.mktemp("postgres")), postgres_server.new_database()
    place.send("a", *numbered_events(6))
    assert load(place.root, database.environ).returncode == ExitCode.DONE
    return database.settled_tables()


STEPS: dict[str, tuple[object, str]] = {
    "before it loads": (Pipeline, "load"),
    "before it is done": (Warehouse, "finish"),
}


def do_before(patch: pytest.MonkeyPatch, step: str, deed: Callable[[], None]) -> None:
    owner, name = STEPS[step]
    work = getattr(owner, name)

    def do_and_work(*arguments: object, **named: object) -> object:
        deed()
        return work(*arguments, **named)

    patch.setattr(owner, name, do_and_work)


@pytest.mark.parametrize("step", STEPS)
def test_a_server_that_stops_within_a_load_is_named_and_the_next_run_is_exact(
    postgres_server: PostgresServer,
    postgres: Database,
    place: Place,
    expected_rows: Tables,
    step: str,
) -> None:
    place.send("a", *numbered_events(6))
    settings = read_settings()
    with pytest.MonkeyPatch.context() as patch:
        do_before(patch, step, postgres_server.stop)
        try:
            with pytest.raises(WarehouseError, match=r"^the warehouse failed: .*nothing is lost"):
                run_load(settings)
        finally:
            postgres_server.start()
    assert main(["load"]) == ExitCode.DONE
    assert postgres.settled_tables() == expected_rows


def test_connections_that_break_all_through_a_load_leave_nothing_wrong(
    postgres_server: PostgresServer, postgres: Database, place: Place, expected_rows: Tables
) -> None:
    place.send("a", *numbered_events(6))
    with breaking_connections(postgres_server, postgres) as broken:
        codes = [main(["load"]) for _ in range(2)]
    codes.append(main(["load"]))
    print(f"{len(broken)} connections broken, exit codes {list(map(int, codes))}")
    assert broken
    assert codes[-1] in {ExitCode.DONE, ExitCode.NOTHING_TO_DO}
    assert postgres.settled_tables() == expected_rows


@contextlib.contextmanager
def breaking_connections(server: PostgresServer, database: Database) -> Iterator[list[int]]:
    """End the first connection to this database, and then all that are there every 300 ms."""
    name = database.url.rpartition("/")[2]
    broken: list[int] = []
    is_over = threading.Event()

    def run() -> None:
        while not is_over.wait(0.3 if broken else 0.002):
            found = server.database("postgres").execute(
                "SELECT pid, pg_terminate_backend(pid) FROM pg_stat_activity "
                f"WHERE datname = '{name}'"
            )
            broken.extend(pid for pid, _ in found)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield broken
    finally:
        is_over.set()
        thread.join(TIMEOUT_S)


# A full disk


class Disk:
    """A file system in memory that is too small at first."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def resize(self, kib: int) -> None:
        mount("-o", f"remount,size={kib}k", str(self.path))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    need_mounts()
    path = tmp_path / "disk"
    path.mkdir()
    if mount("-t", "tmpfs", "-o", "size=100m,mode=700", "none", str(path)):
        pytest.skip("a tmpfs cannot be mounted here")
    try:
        yield Disk(path)
    finally:
        # Lazily: a test that failed may still hold a file.
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def mount(*arguments: str) -> int:
    return subprocess.run(["mount", *arguments], check=False, capture_output=True).returncode


@pytest.mark.parametrize("free_kib", [400])
def test_a_full_disk_under_the_working_directory_is_named_and_the_next_run_is_exact(
    place: Place, expected: dict[str, str], disk: Disk, free_kib: int
) -> None:
    on_disk = Place(disk.path)
    on_disk.send("a", *numbered_events(6))
    environ = {"DESTINATION__WAREHOUSE__CREDENTIALS": str(place.root / "midbound.duckdb")}
    fail_on_full_disk(on_disk, disk, free_kib, environ)
    assert_exact(place, expected)


@pytest.mark.parametrize("free_kib", [40, 120])
def test_a_full_disk_under_the_warehouse_is_named_and_the_next_run_is_exact(
    place: Place, expected: dict[str, str], disk: Disk, free_kib: int
) -> None:
    place.send("a", *numbered_events(6))
    file = place.root / "midbound.duckdb"
    environ = {"DESTINATION__WAREHOUSE__CREDENTIALS": str(disk.path / file.name)}
    fail_on_full_disk(place, disk, free_kib, environ)
    shutil.move(disk.path / file.name, file)
    assert_exact(place, expected)


def test_rows_that_reached_only_the_log_of_duckdb_stay(
    place: Place, expected: dict[str, str], disk: Disk
) -> None:
    """Enough space to commit, too little to write the file out when it is closed."""
    place.send("a", *numbered_events(6))
    file = disk.path / "midbound.duckdb"
    used_kib = -(-shutil.disk_usage(disk.path).used // 1024)
    disk.resize(used_kib + 900)
    environ = {"DESTINATION__WAREHOUSE__CREDENTIALS": str(file)}
    assert load(place.root, environ).returncode == ExitCode.DONE
    for path in (file, file.with_name("midbound.duckdb.wal")):
        shutil.move(path, place.root / path.name)
    assert_exact(place, expected)


def fail_on_full_disk(place: Place, disk: Disk, free_kib: int, environ: Mapping[str, str]) -> None:
    used_kib = -(-shutil.disk_usage(disk.path).used // 1024)
    disk.resize(used_kib + free_kib)
    failed = load(place.root, environ)
    print(failed.stderr[-300:])
    assert failed.returncode == ExitCode.FAILED
    assert len(place.spool.ready_segments()) == 1
    disk.resize(100 * 1024)
    repaired = load(place.root, environ)
    assert repaired.returncode == ExitCode.DONE, repaired.stderr


# A lost or emptied working directory


def empty_files(directory: Path) -> None:
    for path in directory.rglob("*"):
        if path.is_file():
            os.truncate(path, 0)


DEEDS: dict[str, Callable[[Path], None]] = {"lost": shutil.rmtree, "emptied": empty_files}


@pytest.mark.parametrize(
    ("fate", "step", "deed"),
    [
        ("goes on", LOADING, "lost"),
        ("goes on", LOADING, "emptied"),
        ("goes on", MIDDLE, "lost"),
        ("is killed", MIDDLE, "emptied"),
    ],
)
def test_a_working_directory_that_goes_within_a_load_costs_that_load_at_most(
    place: Place, expected: dict[str, str], fate: str, step: tuple[str, str], deed: str
) -> None:
    place.send("a", *numbered_events(6))
    with process(place.root, PAUSED_LOAD, *step) as loader:
        assert loader.stdout.readline() == "paused\n"
        if fate == "is killed":
            loader.kill()
        DEEDS[deed](place.spool.path / "work")
        go_on(loader)
        code = loader.wait(TIMEOUT_S)
    said = errors_of(PAUSED_LOAD, place.root).read_text().splitlines()[-1]
    print(f"exit code {code}: {said}")
    assert main(["load"]) == (ExitCode.DONE if code else ExitCode.NOTHING_TO_DO)
    assert_exact(place, expected)


# A lost destination: move the segments from loaded/ back to ready/, and load


def load_three_times(place: Place, after_first: Callable[[], None] = lambda: None) -> None:
    """Load new events, repeats, a conflict, new columns, and one that is set aside."""
    first, *others = numbered_events(6)
    grown = sample_document() | {"id": "evt_grown", "brandNew": 1, "list": [{"a": 1}, {"a": 2}]}
    other_body = to_body(sample_document() | {"id": "another"})
    place.send("a", first, *others[:2])
    assert main(["load"]) == ExitCode.DONE
    after_first()
    place.send("b", *others[1:], first, ("evt_grown", to_body(grown)))
    assert main(["load"]) == ExitCode.DONE
    place.send("c", (first[0], other_body), ("evt_bad", b"nothing"), *numbered_events(2, first=7))
    assert main(["load"]) == ExitCode.NEEDS_ATTENTION


def load_all_again(place: Place) -> None:
    for path in place.spool.loaded_segments():
        path.rename(place.spool.ready / path.name)
    assert main(["load"]) in {ExitCode.DONE, ExitCode.NEEDS_ATTENTION}
    assert place.spool.ready_segments() == []


def test_a_lost_warehouse_or_an_old_backup_is_completed_from_the_loaded_segments(
    place: Place,
) -> None:
    warehouse, backup = place.root / "midbound.duckdb", place.root / "backup"
    load_three_times(place, after_first=lambda: shutil.copy(warehouse, backup))
    before = place.content(), place.outcomes()
    warehouse.unlink()
    load_all_again(place)
    assert (place.content(), place.outcomes()) == before
    backup.rename(warehouse)
    assert place.counts()["events"] == 3
    load_all_again(place)
    assert (place.content(), place.outcomes()) == before
    assert place.orphans() == {}


def test_a_lost_schema_of_postgresql_comes_back_from_the_loaded_segments(
    place: Place, postgres: Database
) -> None:
    load_three_times(place)
    before = postgres.settled_tables()
    postgres.execute(f"DROP SCHEMA {DEFAULT_DATASET} CASCADE")
    load_all_again(place)
    assert postgres.settled_tables() == before
