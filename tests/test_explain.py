"""`midbound explain`: where an event is, and what became of it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import duckdb
import pytest
from spooling import RECEIVED_AT, SAMPLE, fill_spool

from pipelines.cli import main
from pipelines.exit_codes import ExitCode
from pipelines.verbs.explain import Findings, _find_lines, _search_spool
from receiver.config import SpoolSettings
from receiver.record import Delivery
from receiver.segment import Spool, mark_loaded
from receiver.spool import Writer


@pytest.fixture
def spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Spool:
    monkeypatch.chdir(tmp_path)
    return Spool(Path("spool"))


def _fill(*bodies: tuple[str, bytes]) -> None:
    fill_spool(Path("spool"), bodies)


def _facts(capsys: pytest.CaptureFixture[str], event_id: str) -> dict:
    capsys.readouterr()
    main(["explain", event_id, "--json"])
    return json.loads(capsys.readouterr().out)


def test_an_event_is_explained_from_delivery_to_rows(
    spool: Spool, capsys: pytest.CaptureFixture[str]
) -> None:
    _fill(("evt_1", SAMPLE), ("evt_1", SAMPLE))
    (segment,) = spool.ready_segments()
    main(["load"])
    facts = _facts(capsys, "evt_1")
    assert [(row["outcome"], row["line"]) for row in facts["deliveries"]].count(("loaded", 0)) == 1
    assert {row["outcome"] for row in facts["deliveries"]} == {"loaded", "repeat"}
    assert {row["segment"] for row in facts["deliveries"]} == {segment.stem}
    assert facts["event"]["session_id"] == "01KH5FW03R8XCZQ7PCYNV4ND1H"
    assert facts["row_counts"]["page_events"] == 3
    with duckdb.connect("midbound.duckdb", read_only=True) as connection:
        tables = [name for (name,) in connection.execute(
            "SELECT table_name FROM duckdb_columns() WHERE column_name = 'event_id' "
            "AND table_name <> 'deliveries'"
        ).fetchall()]  # fmt: skip
        for table in tables:
            ((count,),) = connection.execute(
                f"SELECT count(*) FROM midbound_data.{table}"
            ).fetchall()
            assert facts["row_counts"].get(table, 0) == count


def test_an_event_that_waits_is_found_in_its_segment(
    spool: Spool, capsys: pytest.CaptureFixture[str]
) -> None:
    _fill(("evt_0", SAMPLE), ("evt_1", SAMPLE))
    facts = _facts(capsys, "evt_1")
    (segment,) = spool.ready_segments()
    assert facts["waiting"] == [
        {"segment": segment.stem, "state": "sealed", "line": 1, "received_at": RECEIVED_AT}
    ]


def test_an_event_that_never_came_is_not_invented(
    spool: Spool, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", "evt_9"]) == ExitCode.FAILED
    assert capsys.readouterr().err == (
        "midbound explain: evt_9 is neither in the warehouse nor in the spool; it was never "
        "accepted here (midbound status tells what was refused)\n"
    )


def test_it_reads_from_delivery_to_rows(spool: Spool, capsys: pytest.CaptureFixture[str]) -> None:
    other_body = SAMPLE.replace(b"identity.session.finalized", b"identity.session.other", 1)
    _fill(("evt_1", SAMPLE), ("evt_1", other_body))
    (segment,) = spool.ready_segments()
    main(["load"])
    capsys.readouterr()
    assert main(["explain", "evt_1"]) == ExitCode.DONE
    title, loaded, conflict, event, rows = capsys.readouterr().out.split("\n\n")
    assert title == "evt_1: 2 deliveries recorded, 0 waiting in the spool"
    assert re.fullmatch(
        "outcome       loaded\n"
        "sent          2026-11-23T17:22:05Z\n"
        "received      2026-11-23T17:22:05Z\n"
        r"recorded      \S{19}Z by load [0-9.]+" + "\n"
        f"lies in       segment {segment.stem}, line 0",
        loaded,
    )
    assert re.match(
        r"outcome       conflict: another body was loaded first \(SHA-256 [0-9a-f]{64}\)\n",
        conflict,
    )
    assert event.startswith("event_id      evt_1\nevent_type    identity.session.finalized\n")
    assert "\nskills " in rows


def test_an_event_set_aside_has_its_reason_and_no_rows(
    spool: Spool, capsys: pytest.CaptureFixture[str]
) -> None:
    _fill(("evt_1", SAMPLE), ("evt_2", b"[]"))
    main(["load"])
    capsys.readouterr()
    assert main(["explain", "evt_2"]) == ExitCode.DONE
    title, delivery = capsys.readouterr().out.split("\n\n")
    assert title == "evt_2: 1 delivery recorded, 0 waiting in the spool"
    assert delivery.startswith("outcome       set aside: not a JSON object but an array\n")


def test_a_loaded_event_of_which_a_repeat_waits_shows_both(
    spool: Spool, capsys: pytest.CaptureFixture[str]
) -> None:
    _fill(("evt_1", SAMPLE))
    main(["load"])
    _fill(("evt_1", SAMPLE))
    facts = _facts(capsys, "evt_1")
    assert [row["outcome"] for row in facts["deliveries"]] == ["loaded"]
    assert [row["state"] for row in facts["waiting"]] == ["sealed"]


def test_an_event_that_is_just_being_written_is_found(
    spool: Spool, capsys: pytest.CaptureFixture[str]
) -> None:
    spool.create()
    writer = Writer(spool, SpoolSettings(path=spool.path, min_free_bytes=0))
    writer.submit(
        Delivery(
            webhook_id='evt_"1"',  # needs quoting in its line
            webhook_timestamp="1795454525",
            webhook_signature="v1,c2lnbmVk",
            received_at=RECEIVED_AT,
            body=b"{}",
        )
    ).result()
    (row,) = _facts(capsys, 'evt_"1"')["waiting"]
    assert (row["state"], row["line"]) == ("being written", 0)
    writer.close()


def test_a_line_that_a_load_has_recorded_does_not_wait(
    spool: Spool, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after a crash between the commit and the mark."""
    _fill(("evt_1", SAMPLE))
    main(["load"])
    (segment,) = spool.loaded_segments()
    segment.rename(spool.ready / segment.name)
    assert _facts(capsys, "evt_1")["waiting"] == []


def test_an_event_that_was_loaded_into_another_warehouse_is_loud(
    spool: Spool, capsys: pytest.CaptureFixture[str]
) -> None:
    _fill(("evt_1", SAMPLE))
    main(["load"])
    Path("midbound.duckdb").unlink()
    capsys.readouterr()
    assert main(["explain", "evt_1"]) == ExitCode.NEEDS_ATTENTION
    out, err = capsys.readouterr()
    assert out.startswith("evt_1: 0 deliveries recorded, 0 waiting in the spool\n\nstate   ")
    assert err == (
        "midbound explain: evt_1 lies in a segment that was loaded, but the warehouse does not "
        "hold it: compare destination.warehouse with what it was when that segment was loaded\n"
    )
    (missing,) = _facts(capsys, "evt_1")["missing"]
    assert (missing["state"], missing["line"]) == ("loaded", 0)


def test_a_segment_that_moves_on_while_it_is_looked_for_is_found_once(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fill(("evt_1", SAMPLE))
    ready = spool.ready_segments()

    def list_then_move() -> list[Path]:
        mark_loaded(ready)
        return ready

    monkeypatch.setattr(spool, "ready_segments", list_then_move)
    findings = Findings(event_id="evt_1")
    _search_spool(spool, findings)
    assert [line["state"] for line in findings.lines] == ["loaded"]


def test_an_id_that_a_body_only_mentions_is_not_its_line(spool: Spool) -> None:
    _fill(("evt_1", b'{"of":"evt_2"}'))
    (segment,) = spool.ready_segments()
    assert list(_find_lines(segment, "evt_2", is_open=False)) == []
