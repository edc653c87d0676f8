"""One run of the loader against a real DuckDB file: each event once, whatever happens.

A kill is an exception that nothing in the loader catches, raised at a chosen step. What
must hold afterwards is always the same: the next run alone gives the tables that an
undisturbed run gives, and no row belongs to a load that dlt does not list.
"""

from __future__ import annotations

import errno
import gc
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import duckdb
import pytest
from dlt.common.storages import PackageStorage
from dlt.destinations.job_client_impl import SqlJobClientBase
from dlt.pipeline.pipeline import Pipeline
from serving import wait_until
from spools import Place, numbered_events, sample_document, segment_bytes, to_body
from tenacity import stop_after_attempt

import pipelines.ahead
import pipelines.build
import pipelines.packages
import pipelines.warehouse
from pipelines.errors import (
    LoadError,
    PreparationError,
    VerificationError,
    WarehouseError,
    WarehouseHeldError,
)
from pipelines.patience import make_patience
from pipelines.progress import Progress, Silent
from pipelines.report import Refusal
from pipelines.warehouse import Warehouse
from receiver.errors import BusyError
from receiver.segment import SegmentContent, load_lock, read_segment

Kill = Callable[[pytest.MonkeyPatch], None]


class Killed(BaseException):
    """The process ends here."""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.chdir(tmp_path)
    return Place(tmp_path)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What six numbered events are in a warehouse that nothing has disturbed."""
    root = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        place = Place(root)
        place.send("a", *numbered_events(6))
        place.load()
    return place.content()


def _names(paths: list[Path]) -> list[str]:
    return [path.name for path in paths]


# --- once


def test_nothing_to_load_makes_no_warehouse(place: Place) -> None:
    report = place.load()
    assert not report.has_work
    assert not (place.root / "midbound.duckdb").exists()


def test_a_load_reports_what_it_did_and_moves_the_segments(
    place: Place, expected: dict[str, str]
) -> None:
    place.send("a", *numbered_events(3))
    place.send("b", *numbered_events(3, first=3))
    report = place.load()
    assert place.content() == expected
    assert (report.segment_count, report.delivery_count, report.event_count) == (2, 6, 6)
    assert (report.repeat_count, report.conflict_count, report.needs_attention) == (0, 0, False)
    payload = {t: n for t, n in place.counts().items() if t != "loads"}
    assert report.row_counts == payload
    assert place.spool.ready_segments() == []
    assert _names(place.spool.loaded_segments()) == ["a.jsonl", "b.jsonl"]
    assert not (place.spool.path / "work").exists()
    assert set(report.new_tables) == set(place.tables())
    assert report.new_columns == []


def test_a_load_leaves_its_own_account_in_the_warehouse(place: Place) -> None:
    place.send("a", *numbered_events(2), numbered_events(1)[0], ("evt_x", b"nothing"))
    report = place.load()
    (load,) = place.rows("loads")
    assert load["status"] == "done"
    assert [load["load_id"]] == report.load_ids == [load["_dlt_load_id"]]
    names = ("segments", "deliveries", "events", "repeats", "conflicts", "set_aside", "damages")
    assert [load[name] for name in names] == [1, 4, 2, 1, 0, 1, 0]
    assert load["finished_at"] >= load["started_at"]
    assert '"events": 2' in load["row_counts"]


def test_new_fields_are_reported_as_new_columns_and_tables(place: Place) -> None:
    place.send("a", *numbered_events(1))
    place.load()
    place.send("b", ("evt_new", to_body({"brandNew": 1, "lists": [{"a": 1}], "type": 5})))
    report = place.load()
    assert report.new_tables == ["events__lists"]
    assert sorted(report.new_columns) == ["events.brand_new", "events.type__v_bigint"]


# --- again


def test_a_redelivery_in_the_same_load_adds_one_delivery(
    place: Place, expected: dict[str, str]
) -> None:
    first, *others = numbered_events(6)
    place.send("a", first, *others, first)
    report = place.load()
    assert place.content() == expected
    assert report.repeat_count == 1
    assert place.outcomes()[-1] == ("a", 6, "evt_0", "repeat")
    assert place.counts()["deliveries"] == 7


def test_a_redelivery_in_the_next_load_adds_one_delivery(
    place: Place, expected: dict[str, str]
) -> None:
    place.send("a", *numbered_events(6))
    place.load()
    place.send("b", numbered_events(1)[0])
    report = place.load()
    assert place.content() == expected
    assert (report.repeat_count, report.event_count) == (1, 0)
    assert report.row_counts == {"deliveries": 1}
    assert place.outcomes()[-1] == ("b", 0, "evt_0", "repeat")


def test_the_same_lines_again_change_nothing_at_all(place: Place, expected: dict[str, str]) -> None:
    place.send("a", *numbered_events(3), ("evt_bad", b"nothing"))
    place.send("b", *numbered_events(3, first=3))
    place.load()
    before = place.rows("deliveries"), place.rows("loads")
    for path in place.spool.loaded_segments():
        path.rename(place.spool.ready / path.name)
    report = place.load()
    assert place.content() == expected
    assert (place.rows("deliveries"), place.rows("loads")) == before
    assert (report.segment_count, report.delivery_count, report.load_ids) == (2, 0, [])
    assert place.spool.ready_segments() == []


def test_a_lost_warehouse_is_built_again_the_same(place: Place, expected: dict[str, str]) -> None:
    place.send("a", *numbered_events(6))
    place.load()
    (place.root / "midbound.duckdb").unlink()
    for path in place.spool.loaded_segments():
        path.rename(place.spool.ready / path.name)
    place.load()
    assert place.content() == expected


def test_a_torn_working_directory_does_not_matter(place: Place, expected: dict[str, str]) -> None:
    place.send("a", *numbered_events(3))
    place.load()
    schemas = place.spool.path / "work" / "midbound" / "schemas"
    schemas.mkdir(parents=True)
    (schemas / "midbound.schema.json").write_bytes(b"")
    (schemas.parent / "state.json").write_bytes(b"{")
    place.send("b", *numbered_events(3, first=3))
    place.load()
    assert place.content() == expected


def test_of_two_bodies_with_one_id_the_first_is_loaded_and_the_other_told(
    place: Place, expected: dict[str, str]
) -> None:
    (event_id, body), *others = numbered_events(6)
    document = sample_document() | {"id": "another"}
    place.send("a", (event_id, body), *others, (event_id, to_body(document)))
    first = place.load()
    place.send("b", (event_id, to_body(document)))
    second = place.load()
    assert place.content() == expected
    assert (first.conflict_count, second.conflict_count) == (1, 1)
    assert first.needs_attention
    sha256 = next(row["body_sha256"] for row in place.rows("deliveries") if row["line"] == 0)
    conflicts = [row for row in place.rows("deliveries") if row["outcome"] == "conflict"]
    reason = f"another body was loaded first (SHA-256 {sha256})"
    assert [(row["event_id"], row["reason"]) for row in conflicts] == [(event_id, reason)] * 2


def test_event_ids_are_never_sql(place: Place) -> None:
    ids = ["evt_';DROP_TABLE_events;--", 'evt_"%s"\\', "evt_%(x)s", "evt_{0}$1?", "evt_\\'"]
    place.send("a", *((event_id, b"{}") for event_id in ids))
    place.load()
    place.send("b", *((event_id, b"{}") for event_id in ids))
    assert place.load().repeat_count == len(ids)
    assert {row["event_id"] for row in place.rows("events")} == set(ids)


def test_a_backlog_is_loaded_in_bounded_packages(
    place: Place, expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    events = numbered_events(6)
    for number in range(3):
        place.send(f"segment-{number}", *events[2 * number : 2 * number + 2], events[0])
    monkeypatch.setattr(pipelines.ahead, "PACKAGE_BYTES", 50_000)
    report = place.load()
    assert place.content() == expected
    assert len(report.load_ids) == len(set(report.load_ids)) == 2
    assert (report.segment_count, report.event_count, report.repeat_count) == (3, 6, 3)
    assert sorted(row["segments"] for row in place.rows("loads")) == [1, 2]


def _read_on_while_storing(
    place: Place, monkeypatch: pytest.MonkeyPatch, then: Callable[[list[str]], None]
) -> None:
    """Send two packages of three segments; call `then` as the first is stored.

    Of the second, one segment may be read by then: `then` gets the names of those that were.
    """
    paths = [place.send(f"segment-{number}", *numbered_events(1, number)) for number in range(6)]
    monkeypatch.setattr(
        pipelines.ahead, "PACKAGE_BYTES", sum(path.stat().st_size for path in paths[:3])
    )
    monkeypatch.setattr(pipelines.ahead, "AHEAD_BYTES", 1)
    read: list[str] = []
    load = Pipeline.load

    def read_and_note(path: Path) -> SegmentContent:
        read.append(path.name)
        return read_segment(path)

    def load_later(*arguments: object, **named: object) -> object:
        wait_until(lambda: len(read) > 3, "the next package")
        time.sleep(0.1)  # for what must not be read
        then(read)
        return load(*arguments, **named)

    monkeypatch.setattr(pipelines.ahead, "read_segment", read_and_note)
    monkeypatch.setattr(Pipeline, "load", load_later)


def test_a_part_of_the_next_package_is_read_while_one_is_stored(
    place: Place, expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    _read_on_while_storing(place, monkeypatch, lambda read: seen.append(read.copy()))
    report = place.load()
    names = [f"segment-{number}.jsonl" for number in range(6)]
    assert seen == [names[:4], names]
    assert (len(report.load_ids), report.event_count) == (2, 6)
    assert place.content() == expected


def test_a_load_that_fails_does_not_wait_for_what_it_reads_ahead(
    place: Place, expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(_: list[str]) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        _read_on_while_storing(place, patch, die)
        with pytest.raises(Killed):
            place.load()
    place.load()
    assert place.content() == expected


def test_after_so_many_loads_their_row_groups_are_joined(
    place: Place, expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipelines.warehouse, "LOADS_PER_JOINING", 3)
    row_groups = []
    for number in range(6):
        place.send(f"segment-{number}", *numbered_events(1, number))
        place.load()
        ((count,),) = place.query(
            "SELECT count(DISTINCT row_group_id) FROM pragma_storage_info('events')"
        )
        row_groups.append(count)
    assert row_groups == [1, 2, 1, 2, 3, 1]
    assert place.content() == expected


@pytest.mark.parametrize("is_enabled", [True, False])
def test_a_load_leaves_the_search_for_cycles_as_it_was(place: Place, is_enabled: bool) -> None:
    place.send("a", *numbered_events(1))
    try:
        gc.enable() if is_enabled else gc.disable()
        place.load()
        assert gc.isenabled() is is_enabled
    finally:
        gc.enable()


# --- killed


def _kill_instead_of(owner: object, name: str) -> Kill:
    def arm(patch: pytest.MonkeyPatch) -> None:
        def die(*_: object, **__: object) -> None:
            raise Killed

        patch.setattr(owner, name, die)

    return arm


def _kill_after(owner: object, name: str) -> Kill:
    def arm(patch: pytest.MonkeyPatch) -> None:
        work = getattr(owner, name)

        def work_and_die(*arguments: object, **named: object) -> None:
            work(*arguments, **named)
            raise Killed

        patch.setattr(owner, name, work_and_die)

    return arm


# In the order of a run.
KILLS: dict[str, Kill] = {
    "while it asks what the warehouse holds": _kill_instead_of(Warehouse, "holdings"),
    "after it extracted": _kill_after(Pipeline, "extract"),
    "before it announced itself": _kill_instead_of(Warehouse, "announce"),
    "after it announced itself": _kill_after(Warehouse, "announce"),
    "after its rows, before dlt lists it": _kill_instead_of(SqlJobClientBase, "complete_load"),
    "after dlt lists it": _kill_after(SqlJobClientBase, "complete_load"),
    "before dlt clears its package": _kill_instead_of(PackageStorage, "complete_loading_package"),
    "before it counted its rows": _kill_instead_of(Warehouse, "count_rows"),
    "before it said that it is done": _kill_instead_of(Warehouse, "finish"),
    "after it said that it is done": _kill_after(Warehouse, "finish"),
    "before its segments were marked": _kill_instead_of(pipelines.packages, "mark_loaded"),
    "after its segments were marked": _kill_after(pipelines.packages, "mark_loaded"),
}


@pytest.mark.parametrize("step", KILLS)
def test_after_a_kill_of_the_first_load_the_next_run_alone_repairs(
    place: Place, expected: dict[str, str], step: str
) -> None:
    place.send("b", *numbered_events(6))
    _kill_and_repair(place, expected, step)


@pytest.mark.parametrize(
    "step",
    [
        "after it announced itself",
        "after its rows, before dlt lists it",
        "before it said that it is done",
        "before its segments were marked",
    ],
)
def test_after_a_kill_of_a_later_load_the_next_run_alone_repairs(
    place: Place, expected: dict[str, str], step: str
) -> None:
    place.send("a", *numbered_events(2))
    place.load()
    place.send("b", *numbered_events(4, first=2))
    _kill_and_repair(place, expected, step)


def _kill_and_repair(place: Place, expected: dict[str, str], step: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        KILLS[step](patch)
        # The working directory stays as a killed process leaves it.
        patch.setattr(pipelines.packages, "shutil", SimpleNamespace(rmtree=lambda *_, **__: None))
        with pytest.raises(Killed):
            place.load()
    place.load()
    assert place.content() == expected
    assert place.orphans() == {}
    assert place.counts()["deliveries"] == 6
    assert {row["status"] for row in place.rows("loads")} == {"done"}
    assert place.spool.ready_segments() == []


@pytest.mark.parametrize("deleted_count", [0, 1, 2, 10])
def test_a_kill_while_mending_is_mended_by_the_run_after(
    place: Place, expected: dict[str, str], deleted_count: int
) -> None:
    place.send("a", *numbered_events(6))
    with pytest.MonkeyPatch.context() as patch:
        KILLS["before it said that it is done"](patch)
        with pytest.raises(Killed):
            place.load()
    with pytest.MonkeyPatch.context() as patch:
        delete, calls = pipelines.warehouse._delete, iter(range(100))

        def delete_some(*arguments: object) -> None:
            if next(calls) == deleted_count:
                raise Killed
            delete(*arguments)

        patch.setattr(pipelines.warehouse, "_delete", delete_some)
        with pytest.raises(Killed):
            place.load()
    report = place.load()
    assert len(report.purged_load_ids) == 1
    assert place.content() == expected
    assert place.orphans() == {}


def test_a_kill_in_the_second_package_keeps_the_first(
    place: Place, expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        place.send(f"segment-{number}", *numbered_events(2, first=2 * number))
    monkeypatch.setattr(pipelines.ahead, "PACKAGE_BYTES", 1)
    with pytest.MonkeyPatch.context() as patch:
        finish, calls = Warehouse.finish, iter(range(3))

        def finish_one(*arguments: object) -> None:
            if next(calls):
                raise Killed
            finish(*arguments)

        patch.setattr(Warehouse, "finish", finish_one)
        with pytest.raises(Killed):
            place.load()
    assert _names(place.spool.loaded_segments()) == ["segment-0.jsonl"]
    report = place.load()
    assert report.segment_count == 2
    assert place.content() == expected
    assert place.orphans() == {}


# --- verified


@pytest.mark.parametrize(
    ("table", "change", "said"),
    [
        ("skills", "INSERT INTO {table} SELECT * FROM {table}", "{{'skills': '60 of 30'}}"),
        ("events", "DELETE FROM {table} WHERE event_id = 'evt_3'", "{{'events': '5 of 6'}}"),
        ("_dlt_loads", "DELETE FROM {table}", "no completed load"),
        ("_dlt_loads", "INSERT INTO {table} SELECT * FROM {table}", "no completed load"),
    ],
)
def test_rows_that_are_not_those_sent_are_taken_back(
    place: Place, expected: dict[str, str], table: str, change: str, said: str
) -> None:
    place.send("a", *numbered_events(6))
    with pytest.MonkeyPatch.context() as patch:
        count_rows, load_ids = Warehouse.count_rows, []

        def meddle_and_count(self: Warehouse, load_id: str, tables: list[str]) -> dict[str, int]:
            load_ids.append(load_id)
            with self.connect() as client:
                client.execute_sql(change.format(table=client.make_qualified_table_name(table)))
            return count_rows(self, load_id, tables)

        patch.setattr(Warehouse, "count_rows", meddle_and_count)
        with pytest.raises(VerificationError) as caught:
            place.load()
    assert str(caught.value) == (
        f"load {load_ids[0]} brought {said.format()}; its rows were taken back, "
        "and its segments wait for the next run: load again"
    )
    assert place.counts() == {}
    assert _names(place.spool.ready_segments()) == ["a.jsonl"]
    place.load()
    assert place.content() == expected
    assert place.orphans() == {}


# --- damaged


def test_damaged_lines_are_kept_and_told_and_their_neighbours_load(place: Place) -> None:
    data = segment_bytes("a", numbered_events(4))
    lines = data.splitlines(keepends=True)
    middle = len(lines[0]) + len(lines[1])
    hit = bytearray(data)
    hit[middle + 500] ^= 1
    place.spool.create()
    (place.spool.ready / "a.jsonl").write_bytes(hit)
    report = place.load()
    assert [row["event_id"] for row in place.rows("deliveries")] == ["evt_0", "evt_1", "evt_3"]
    damaged = f"offset {middle}, {len(lines[2])} bytes"
    place_of_next = f"offset {middle + len(lines[2])}, 0 bytes"
    assert report.damages == [
        Refusal(segment="a", place=damaged, reason="the checksum does not fit"),
        Refusal(segment="a", place=place_of_next, reason="line 2 is missing"),
    ]
    assert report.needs_attention
    kept = place.spool.quarantine / f"a-{middle:012d}.bin"
    assert kept.read_bytes() == bytes(hit[middle : middle + len(lines[2])])
    (load,) = place.rows("loads")
    assert load["damages"] == 2


def test_a_segment_of_garbage_blocks_nothing(place: Place, expected: dict[str, str]) -> None:
    place.spool.create()
    (place.spool.ready / "0.jsonl").write_bytes(b"\0" * 4096)
    (place.spool.ready / "1.jsonl").write_bytes(b"")
    place.send("2", *numbered_events(6))
    report = place.load()
    assert place.content() == expected
    assert [(damage.segment, damage.reason) for damage in report.damages] == [
        ("0", "zeros where lines should be"),
        ("0", "the seal is missing"),
        ("1", "the seal is missing"),
    ]
    assert place.spool.ready_segments() == []


# --- held, busy, broken


HOLD = """
import sys, duckdb
connection = duckdb.connect("midbound.duckdb", read_only=sys.argv[1] == "reading")
print("held", flush=True)
sys.stdin.read()
"""


class _Told(Silent):
    def __init__(self) -> None:
        self.messages: list[str] = []

    def say(self, message: str) -> None:
        self.messages.append(message)


def _short_patience(patch: pytest.MonkeyPatch, told: Progress) -> None:
    # Twice, however long a try takes on a busy machine.
    twice = make_patience(told).copy(stop=stop_after_attempt(2))
    patch.setattr(pipelines.packages, "make_patience", lambda _: twice)


@pytest.mark.parametrize("way", ["reading", "writing"])
def test_who_holds_the_warehouse_is_named_and_the_run_after_loads(
    place: Place, expected: dict[str, str], monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    place.send("a", *numbered_events(3))
    place.load()
    place.send("b", *numbered_events(3, first=3))
    told = _Told()
    _short_patience(monkeypatch, told)
    command = [sys.executable, "-c", HOLD, way]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(WarehouseHeldError) as caught:
            place.load()
        holder.stdin.close()
    who = re.escape(f"(PID {holder.pid})")
    assert re.fullmatch(
        rf"\S+ {who} holds the DuckDB file; close it there, then try again "
        r"\(nothing is lost: the spool keeps every event\)",
        str(caught.value),
    )
    (message,) = told.messages
    assert re.fullmatch(rf"waiting: \S+ {who} holds the warehouse", message)
    place.load()
    assert place.content() == expected


def test_a_second_loader_is_told_at_once_who_is_loading(place: Place) -> None:
    place.send("a", *numbered_events(1))
    with load_lock(place.spool), pytest.raises(BusyError) as caught:
        place.load()
    assert str(caught.value) == (
        f"another load is running (process {os.getpid()} holds {place.spool.path / 'load.lock'}); "
        "wait until it has ended, then load again"
    )
    assert place.load().event_count == 1


def test_a_load_that_another_loader_took_back_is_loaded_again(
    place: Place, expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place.send("a", *numbered_events(6))
    finish = Warehouse.finish

    def purge_and_finish(self: Warehouse, load_id: str, values: dict[str, object]) -> None:
        self.purge(load_id)  # as a loader elsewhere does with what is not done
        finish(self, load_id, values)

    with monkeypatch.context() as patch:
        patch.setattr(Warehouse, "finish", purge_and_finish)
        with pytest.raises(VerificationError, match="was taken back by another loader on the same"):
            place.load()
    assert _names(place.spool.ready_segments()) == ["a.jsonl"]
    assert place.load().event_count == 6
    assert place.content() == expected


def test_a_clock_that_went_back_hides_no_column_and_no_leftover(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.send("a", ("evt_1", b"{}"))
    place.load()
    place.send("b", ("evt_2", b'{"new":[{"x":1}],"y":7}'))
    place.load()
    with closing(duckdb.connect("midbound.duckdb")) as connection:
        # The first version was stored by a clock that was ahead.
        connection.execute(
            "UPDATE midbound_data._dlt_version SET inserted_at = now() + INTERVAL 30 DAY "
            "WHERE version = (SELECT min(version) FROM midbound_data._dlt_version)"
        )
    place.send("c", ("evt_3", b'{"new":[{"x":2}],"y":"seven"}'))
    with monkeypatch.context() as patch:
        _kill_instead_of(Warehouse, "finish")(patch)
        with pytest.raises(Killed):
            place.load()
    report = place.load()
    assert (report.event_count, len(report.purged_load_ids)) == (1, 1)
    assert [row["x"] for row in place.rows("events__new")] == [1, 2]
    assert place.orphans() == {}
    assert place.tables()["events"]["y__v_text"] == "VARCHAR"


def test_an_event_that_was_set_aside_makes_no_other_a_conflict(place: Place) -> None:
    deep = b'{"a":' * 600 + b"1" + b"}" * 600
    place.send("a", ("evt_1", deep), ("evt_1", b'{"id":"evt_1"}'), ("evt_1", deep))
    place.load()
    assert [outcome for *_, outcome in place.outcomes()] == ["set_aside", "loaded", "conflict"]


def test_what_fails_before_the_warehouse_is_not_blamed_on_it(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.send("a", *numbered_events(1))

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pipelines.build.TableBuilder, "build", fail)
        with pytest.raises(PreparationError) as caught:
            place.load()
    assert str(caught.value) == (
        "preparing the load failed: [Errno 28] No space left on device; see that the disk of the "
        "spool has space left, then try again, and report it if it stays "
        "(nothing is lost: the spool keeps every event)"
    )
    assert place.load().event_count == 1


@pytest.mark.parametrize("mark", ["%", "*", "?", "[", "'"])
def test_a_path_that_dlt_cannot_use_is_named(
    mark: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / f"a{mark}b"
    root.mkdir()
    monkeypatch.chdir(root)
    place = Place(root)
    place.send("a", *numbered_events(1))
    with pytest.raises(LoadError) as caught:
        place.load()
    assert str(caught.value) == (
        f"the path {root}/spool/work holds a {mark}, which dlt or DuckDB would take for a pattern; "
        "move the directory, or set spool.path (SPOOL__PATH) to one without it"
    )
    assert len(place.spool.ready_segments()) == 1


def test_a_warehouse_that_fails_is_named_and_the_run_after_loads(
    place: Place, expected: dict[str, str]
) -> None:
    place.send("a", *numbered_events(6))
    (place.root / "midbound.duckdb").write_bytes(b"not a database " * 400)
    with pytest.raises(WarehouseError) as caught:
        place.load()
    assert str(caught.value) == (
        "the warehouse failed: IO Error: The file "
        f'"{place.root / "midbound.duckdb"}" exists, but it is not a valid DuckDB database file!; '
        "mend that, then try again (nothing is lost: the spool keeps every event)"
    )
    assert _names(place.spool.ready_segments()) == ["a.jsonl"]
    (place.root / "midbound.duckdb").unlink()
    place.load()
    assert place.content() == expected
