"""`midbound status` and `midbound explain`: what a person asks when something seems missing."""

from __future__ import annotations

import json
from pathlib import Path

import duckdb
import pytest
from spooling import RECEIVED_AT, fill_spool, sample_event

from pipelines.cli import main
from pipelines.exit_codes import ExitCode
from receiver.counts import ProcessCounts
from receiver.scan import Damage
from receiver.segment import Spool, quarantine


@pytest.fixture
def spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Spool:
    monkeypatch.chdir(tmp_path)
    return Spool(Path("spool"))


def _fill(*bodies: tuple[str, bytes]) -> None:
    fill_spool(Path("spool"), bodies)


def _sample() -> bytes:
    return json.dumps(sample_event()).encode()


def _facts(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    capsys.readouterr()
    main([*arguments, "--json"])
    return json.loads(capsys.readouterr().out)


def test_before_anything_happened_it_says_so(
    spool: Spool, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status"]) == ExitCode.DONE
    assert capsys.readouterr().out == (
        "spool       spool does not exist yet; midbound receive makes it\n\n"
        "accepted    0 deliveries, the last: never\n\n"
        "warehouse   no table yet; midbound load makes them\n"
    )
    assert not Path("midbound.duckdb").exists()


def test_it_tells_what_waits_and_since_when(
    spool: Spool, capsys: pytest.CaptureFixture[str]
) -> None:
    _fill(("evt_1", _sample()))
    facts = _facts(capsys, "status")["spool"]
    (segment,) = spool.ready_segments()
    assert facts["waiting_segments"] == 1
    assert facts["waiting_bytes"] == segment.stat().st_size
    day, clock = facts["waiting_since"].rstrip("Z").split("T")
    assert segment.name.startswith(f"{day.replace('-', '')}T{clock.replace(':', '')}")


def test_it_tells_what_was_loaded_and_set_aside(
    spool: Spool, capsys: pytest.CaptureFixture[str]
) -> None:
    _fill(("evt_1", _sample()), ("evt_2", b"[]"))
    main(["load"])
    capsys.readouterr()
    assert main(["status"]) == ExitCode.NEEDS_ATTENTION
    out, err = capsys.readouterr()
    assert "newest      evt_1, identity.session.finalized, received 2026-11-23T17:22:05Z" in out
    assert "not a JSON object but an array" in out
    assert err == (
        "midbound status: 1 deliveries were set aside in the last day; see their reasons above, "
        "and midbound explain EVENT_ID\n"
    )
    facts = _facts(capsys, "status")["warehouse"]
    assert facts["row_counts"]["skills"] == 5
    assert facts["last_load"]["events"] == 1


def test_it_tells_what_was_refused_and_which_key_signs(
    spool: Spool, capsys: pytest.CaptureFixture[str]
) -> None:
    spool.create()
    counts = ProcessCounts(spool)
    counts.add_accepted("1:base64")
    counts.add_refused("missing_header")
    counts.close()
    assert main(["status"]) == ExitCode.DONE
    out = capsys.readouterr().out
    assert "signed by   secret 1:base64: 1\n" in out
    assert "refused     missing_header: 1, the last: " in out


def test_a_wrong_secret_is_loud(spool: Spool, capsys: pytest.CaptureFixture[str]) -> None:
    spool.create()
    counts = ProcessCounts(spool)
    counts.add_refused("wrong_signature")
    counts.close()
    assert main(["status"]) == ExitCode.NEEDS_ATTENTION
    assert "the secret is probably wrong" in capsys.readouterr().err


def test_damaged_bytes_are_loud(spool: Spool, capsys: pytest.CaptureFixture[str]) -> None:
    spool.create()
    quarantine(spool, "s", Damage(offset=0, size_bytes=3, reason="torn"), b"abc")
    assert main(["status"]) == ExitCode.NEEDS_ATTENTION
    assert capsys.readouterr().err == (
        "midbound status: 1 stretches of damaged bytes were found in the last day; look at "
        "spool/quarantine, and at this machine's disk\n"
    )


def test_an_event_is_explained_from_delivery_to_rows(
    spool: Spool, capsys: pytest.CaptureFixture[str]
) -> None:
    _fill(("evt_1", _sample()), ("evt_1", _sample()))
    (segment,) = spool.ready_segments()
    main(["load"])
    facts = _facts(capsys, "explain", "evt_1")
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
    _fill(("evt_0", _sample()), ("evt_1", _sample()))
    facts = _facts(capsys, "explain", "evt_1")
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
