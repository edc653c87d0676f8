"""The same event again, in every way that it can come: one more delivery, no other row."""

from __future__ import annotations

import shutil
from pathlib import Path

import duckdb
import pytest
from spooling import SAMPLE, fill_spool

from pipelines.demo.generate import generate_events
from pipelines.load import run_load
from pipelines.report import LoadReport
from receiver.config import read_settings
from receiver.segment import Spool

EVENTS = [(event.webhook_id, event.body) for event in generate_events(30, seed=11)]
OURS = ("deliveries", "loads")
Contents = dict[str, list[tuple[object, ...]]]


@pytest.fixture(autouse=True)
def _empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _load() -> LoadReport:
    return run_load(read_settings())


def _fill(*events: tuple[str, bytes]) -> None:
    fill_spool(Path("spool"), events)


def _contents() -> Contents:
    """Give every row of every payload table, load ids included."""
    with duckdb.connect("midbound.duckdb", read_only=True) as connection:
        names = connection.execute(
            "SELECT table_name FROM duckdb_tables() WHERE table_name NOT LIKE '%dlt%'"
        ).fetchall()
        return {
            name: connection.execute(
                f"SELECT * FROM midbound_data.{name} ORDER BY _dlt_id"
            ).fetchall()
            for (name,) in names
            if name not in OURS
        }


def _outcomes() -> dict[str, int]:
    with duckdb.connect("midbound.duckdb", read_only=True) as connection:
        rows = connection.execute(
            "SELECT outcome, count(*) FROM midbound_data.deliveries GROUP BY outcome"
        ).fetchall()
    return dict(rows)


def _load_once() -> Contents:
    _fill(*EVENTS)
    _load()
    return _contents()


def test_in_the_same_load_it_is_one_event() -> None:
    _fill(("evt_1", SAMPLE), ("evt_1", SAMPLE), ("evt_1", SAMPLE))
    _load()
    assert {name: len(rows) for name, rows in _contents().items()}["events"] == 1
    assert _outcomes() == {"loaded": 1, "repeat": 2}


def test_in_the_next_load_it_changes_no_row() -> None:
    before = _load_once()
    _fill(EVENTS[3], EVENTS[4])
    report = _load()
    assert (report.event_count, report.repeat_count) == (0, 2)
    assert _contents() == before
    assert _outcomes() == {"loaded": 30, "repeat": 2}


def test_with_another_body_the_first_one_stays_and_the_conflict_is_recorded() -> None:
    before = _load_once()
    _fill((EVENTS[3][0], SAMPLE))
    report = _load()
    assert report.conflict_count == 1
    assert report.needs_attention
    assert _contents() == before
    with duckdb.connect("midbound.duckdb", read_only=True) as connection:
        ((reason, first),) = connection.execute(
            "SELECT a.reason, b.body_sha256 FROM midbound_data.deliveries AS a "
            "JOIN midbound_data.deliveries AS b USING (event_id) "
            "WHERE a.outcome = 'conflict' AND b.outcome = 'loaded'"
        ).fetchall()
    assert reason == f"another body was loaded first (SHA-256 {first})"


def test_the_same_segments_again_change_nothing_at_all() -> None:
    before = _load_once()
    spool = Spool("spool")
    for path in spool.loaded_segments():
        path.rename(spool.ready / path.name)
    report = _load()
    assert (report.segment_count, report.delivery_count) == (1, 0)
    assert _contents() == before
    assert _outcomes() == {"loaded": 30}
    assert not spool.ready_segments()


def test_after_a_lost_working_directory_it_changes_no_row() -> None:
    before = _load_once()
    shutil.rmtree("spool/work", ignore_errors=True)
    _fill(*EVENTS)
    assert _load().event_count == 0
    assert _contents() == before


@pytest.mark.parametrize("stopped_before", ["announce", "_verify", "finish", "mark_loaded"])
def test_a_load_that_is_stopped_is_repaired_by_the_next(
    stopped_before: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines import packages
    from pipelines.warehouse import Warehouse

    _fill(*EVENTS[:10])
    _load()
    _fill(*EVENTS)

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    owner = {
        "announce": Warehouse,
        "finish": Warehouse,
        "_verify": packages.PackageLoader,
        "mark_loaded": packages,
    }[stopped_before]
    with monkeypatch.context() as patch:
        patch.setattr(owner, stopped_before, stop)
        with pytest.raises(KeyboardInterrupt):
            _load()
    report = _load()
    assert len(report.purged_load_ids) == (stopped_before in ("_verify", "finish"))
    with duckdb.connect("midbound.duckdb", read_only=True) as connection:
        counts = connection.execute(
            "SELECT count(*), count(DISTINCT event_id) FROM midbound_data.events"
        ).fetchall()
        assert counts == [(30, 30)]
        for table in [*_contents(), *OURS]:
            ((stray,),) = connection.execute(
                f"SELECT count(*) FROM midbound_data.{table} WHERE _dlt_load_id NOT IN "
                "(SELECT load_id FROM midbound_data._dlt_loads WHERE status = 0)"
            ).fetchall()
            assert stray == 0
    stopped = {name: [row[:-1] for row in rows] for name, rows in _contents().items()}
    Path("midbound.duckdb").unlink()
    spool = Spool("spool")
    for path in spool.loaded_segments():
        path.rename(spool.ready / path.name)
    _load()
    assert {name: [row[:-1] for row in rows] for name, rows in _contents().items()} == stopped
    assert _outcomes() == {"loaded": 30, "repeat": 10}
