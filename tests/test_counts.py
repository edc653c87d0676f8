"""What was accepted and refused is counted by each process, and read as one sum."""

from __future__ import annotations

import logging
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest

from receiver.clock import Clock
from receiver.counts import Counts, ProcessCounts, read_counts
from receiver.segment import Spool


class SetClock(Clock):
    time = datetime(2026, 11, 23, 17, 0, 0, tzinfo=UTC)

    def now(self) -> datetime:
        return self.time


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    spool = Spool(tmp_path / "spool")
    spool.create()
    return spool


def test_a_spool_without_counts_reads_as_nothing(tmp_path: Path, spool: Spool) -> None:
    assert read_counts(spool) == read_counts(Spool(tmp_path / "none")) == Counts()


def test_the_counts_of_all_processes_are_added(spool: Spool) -> None:
    clock = SetClock()
    first, second = ProcessCounts(spool, clock), ProcessCounts(spool, clock)
    first.add_accepted("bffcb3:base64")
    first.add_accepted("c0ffee:text")
    first.add_refused("stale", clock_skew_s=400)
    clock.time = clock.time.replace(hour=18)
    second.add_accepted("bffcb3:base64")
    second.add_refused("stale", clock_skew_s=500)
    second.add_refused("wrong_signature")
    clock.time = clock.time.replace(hour=19)
    first.add_refused("too_large")
    first.close()
    second.close()
    assert read_counts(spool) == Counts(
        accepted=3,
        last_accepted_at="2026-11-23T18:00:00.000000Z",
        refused={"stale": 2, "wrong_signature": 1, "too_large": 1},
        last_refused_at={
            "stale": "2026-11-23T18:00:00.000000Z",
            "wrong_signature": "2026-11-23T18:00:00.000000Z",
            "too_large": "2026-11-23T19:00:00.000000Z",
        },
        matched={"bffcb3:base64": 2, "c0ffee:text": 1},
        last_matched_at={
            "bffcb3:base64": "2026-11-23T18:00:00.000000Z",
            "c0ffee:text": "2026-11-23T17:00:00.000000Z",
        },
        clock_skew_s=500,
    )


def test_counts_that_changed_nothing_write_no_file(spool: Spool) -> None:
    ProcessCounts(spool).close()
    assert list(spool.counts.iterdir()) == []


def test_the_file_is_replaced_as_a_whole_and_for_its_owner_only(spool: Spool) -> None:
    counts = ProcessCounts(spool)
    for _ in range(2):
        counts.add_accepted("bffcb3:text")
        counts.close()
    [path] = spool.counts.iterdir()
    assert path.suffix == ".json"
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_counts(spool).accepted == 2


@pytest.mark.parametrize("text", ["", "{", "[]", '{"unknown": 1}'])
def test_a_file_that_cannot_be_read_adds_nothing_and_is_logged(
    spool: Spool, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    counts = ProcessCounts(spool)
    counts.add_accepted("bffcb3:text")
    counts.close()
    (spool.counts / "broken.json").write_text(text)
    with caplog.at_level(logging.WARNING, logger="receiver"):
        assert read_counts(spool).accepted == 1
    assert [record.message.split(" error=")[0] for record in caplog.records] == [
        "event=counts_not_read file='broken.json'"
    ]


def test_a_disk_that_takes_no_counts_breaks_nothing(
    spool: Spool, caplog: pytest.LogCaptureFixture
) -> None:
    spool.counts.rmdir()
    counts = ProcessCounts(spool)
    counts.add_accepted("bffcb3:text")
    with caplog.at_level(logging.WARNING, logger="receiver"):
        counts.close()
    assert caplog.messages[0].startswith('event=counts_not_written error="[Errno 2] No such file')


def test_a_timer_that_did_not_start_raises_nothing_and_the_end_writes_what_was_counted(
    spool: Spool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    counts = ProcessCounts(spool)
    with monkeypatch.context() as patched, caplog.at_level(logging.WARNING, logger="receiver"):
        patched.setattr(threading.Thread, "start", fail)
        counts.add_accepted("bffcb3:text")
        counts.add_refused("stale")
    assert (
        caplog.messages
        == [
            'event=counts_not_written error="can\'t start new thread"',
        ]
        * 2
    )
    counts.close()
    assert read_counts(spool).accepted == 1
