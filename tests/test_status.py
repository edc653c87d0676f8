"""`midbound status`: what waits, what was refused or set aside, and what arrived."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import pytest
from spooling import fill_spool, sample_event

from pipelines.cli import main
from pipelines.exit_codes import ExitCode
from pipelines.verbs.status import _size_bytes
from receiver.config import SpoolSettings
from receiver.counts import ProcessCounts
from receiver.record import Delivery
from receiver.scan import Damage
from receiver.segment import Spool, quarantine
from receiver.spool import Writer


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


@pytest.mark.parametrize(("age_s", "rings"), [(7000, False), (7300, True)])
def test_segments_that_wait_too_long_ring(
    spool: Spool, capsys: pytest.CaptureFixture[str], age_s: int, rings: bool
) -> None:
    _fill(("evt_1", _sample()))
    ProcessCounts(spool).add_accepted("0:text")
    (segment,) = spool.ready_segments()
    sealed_at_s = int(time.time()) - age_s
    os.utime(segment, (sealed_at_s, sealed_at_s))
    alarms = _facts(capsys, "status", "--max-age", "2h")["alarms"]
    since = datetime.fromtimestamp(sealed_at_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    waiting = (
        f"sealed segments wait for a load since {since}: check that the scheduled load runs; "
        "midbound load says what keeps it"
    )
    assert [alarm for alarm in alarms if "segments" in alarm] == [waiting] * rings


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
        "midbound status: set aside in the last day: 1; see the reasons above, and midbound "
        "explain EVENT_ID\n"
    )
    facts = _facts(capsys, "status")["warehouse"]
    assert facts["row_counts"]["skills"] == 5
    assert facts["last_load"]["events"] == 1


def test_it_tells_what_was_refused_and_which_key_signs(
    spool: Spool, capsys: pytest.CaptureFixture[str]
) -> None:
    spool.create()
    counts = ProcessCounts(spool)
    counts.add_accepted("bffcb3:base64")
    counts.add_refused("missing_header")
    counts.close()
    assert main(["status"]) == ExitCode.DONE
    out = capsys.readouterr().out
    assert "signed by   secret bffcb3:base64: 1\n" in out
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
        "midbound status: 1 stretch of damaged bytes found in the last day; look at "
        "spool/quarantine, and at this machine's disk\n"
    )


def test_it_tells_what_is_being_written(spool: Spool, capsys: pytest.CaptureFixture[str]) -> None:
    spool.create()
    writer = Writer(spool, SpoolSettings(path=spool.path, min_free_bytes=0))
    writer.submit(
        Delivery(
            webhook_id="evt_1",
            webhook_timestamp="1795454525",
            webhook_signature="v1,c2lnbmVk",
            received_at="2026-11-23T17:22:05.123456Z",
            body=b"{}",
        )
    ).result()
    assert main(["status"]) == ExitCode.DONE
    (segment,) = spool.open_segments()
    since = _facts(capsys, "status")["spool"]["open_since"]
    main(["status"])
    assert f"open        1 segment, {segment.stat().st_size} bytes, since {since}\n" in (
        capsys.readouterr().out
    )
    writer.close()


def test_the_whole_of_it_reads_well(spool: Spool, capsys: pytest.CaptureFixture[str]) -> None:
    _fill(("evt_1", _sample()), ("evt_1", _sample()))
    main(["load"])
    capsys.readouterr()
    assert main(["status"]) == ExitCode.DONE
    blocks = capsys.readouterr().out.split("\n\n")
    assert blocks[0] == (
        "spool       spool\n"
        "waiting     0 segments\n"
        "open        0 segments\n"
        "loaded      1 segment kept\n"
        "quarantine  0 stretches of damaged bytes"
    )
    last_load, newest = blocks[2].splitlines()
    assert re.fullmatch(
        r"last load   \S{19}Z, done in \d+\.\d s: 1 event, 1 repeat \(load [0-9.]+\)", last_load
    )
    assert newest.startswith("newest      evt_1, ")
    assert blocks[3].startswith("table")


def test_a_load_that_was_killed_is_called_unfinished(
    spool: Spool, capsys: pytest.CaptureFixture[str]
) -> None:
    _fill(("evt_1", _sample()))
    main(["load"])
    with duckdb.connect("midbound.duckdb") as connection:
        connection.execute(
            "UPDATE midbound_data.loads SET status = 'started', events = NULL, finished_at = NULL"
        )
    capsys.readouterr()
    assert main(["status"]) == ExitCode.DONE
    assert ", started and not done; the next load takes it back (load " in capsys.readouterr().out


def test_of_many_set_aside_the_newest_are_shown_and_the_rest_counted(
    spool: Spool, capsys: pytest.CaptureFixture[str]
) -> None:
    _fill(*[(f"evt_{n}", b"[]") for n in range(22)])
    main(["load"])
    capsys.readouterr()
    main(["status"])
    out = capsys.readouterr().out
    assert out.count("not a JSON object but an array") == 20
    assert out.endswith("\nand 2 more\n")
    assert len(_facts(capsys, "status")["warehouse"]["set_aside"]) == 22


def test_what_was_set_aside_long_ago_does_not_ring(
    spool: Spool, capsys: pytest.CaptureFixture[str]
) -> None:
    _fill(("evt_1", b"[]"))
    main(["load"])
    with duckdb.connect("midbound.duckdb") as connection:
        connection.execute(
            "UPDATE midbound_data.deliveries SET loaded_at = loaded_at - INTERVAL 25 HOUR"
        )
    assert main(["status"]) == ExitCode.DONE
    assert "not a JSON object but an array" in capsys.readouterr().out


def test_a_held_warehouse_hides_nothing_of_the_spool(
    spool: Spool, capsys: pytest.CaptureFixture[str]
) -> None:
    _fill(("evt_1", _sample()))
    main(["load"])
    _fill(("evt_2", _sample()))
    capsys.readouterr()
    with _held_by_another_process() as process_id:
        assert main(["status"]) == ExitCode.BUSY
        out, err = capsys.readouterr()
        assert main(["explain", "evt_1"]) == ExitCode.BUSY
    assert "waiting     1 segment, " in out
    assert out.endswith("\nwarehouse   not asked: another process holds it\n")
    assert re.fullmatch(
        rf"midbound status: .*\(PID {process_id}\) holds the DuckDB file; close it there, then "
        r"try again \(nothing is lost: the spool keeps every event\)\n",
        err,
    )


@contextmanager
def _held_by_another_process() -> Iterator[int]:
    code = "import duckdb; c = duckdb.connect('midbound.duckdb'); print(1, flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "1\n"
        yield process.pid
        process.communicate("\n")


def test_a_warehouse_that_fails_hides_nothing_of_the_spool(
    spool: Spool, capsys: pytest.CaptureFixture[str]
) -> None:
    _fill(("evt_1", _sample()))
    Path("midbound.duckdb").write_bytes(b"this is no database" * 1000)
    assert main(["status"]) == ExitCode.FAILED
    out, err = capsys.readouterr()
    assert "waiting     1 segment, " in out
    assert out.endswith("\nwarehouse   not asked: it does not answer\n")
    assert err.startswith("midbound status: the warehouse failed: IO Error: ")


def test_a_host_that_only_receives_has_a_status_too(
    spool: Spool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _fill(("evt_1", _sample()))
    for module in ("pipelines.patience", "pipelines.warehouse"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, "dlt", None)
    assert main(["status"]) == ExitCode.DONE
    assert capsys.readouterr().out.endswith(
        "\nwarehouse   not asked: dlt is not installed on this host\n"
    )


def test_a_segment_that_moves_on_meanwhile_is_passed_over(tmp_path: Path) -> None:
    here = tmp_path / "a"
    here.write_bytes(b"1234")
    assert _size_bytes([tmp_path / "gone", here]) == 4


def test_a_spool_that_is_no_directory_is_named(
    spool: Spool, capsys: pytest.CaptureFixture[str]
) -> None:
    spool.path.touch()
    assert main(["status"]) == ExitCode.FAILED
    assert capsys.readouterr().err == "midbound status: spool/counts: Not a directory\n"
