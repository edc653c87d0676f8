"""What was accepted and refused is counted by each process, and read as one sum."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest

import receiver.counts as counts_module
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
        counts._write()
    [path] = spool.counts.iterdir()
    assert path.suffix == ".json"
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_counts(spool).accepted == 2


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"unknown": 1}', '{"accepted": "1"}', '{"refused": 1}', "\0" * 9]
)
def test_a_file_that_cannot_be_read_adds_nothing_and_is_logged(
    spool: Spool, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    counts = ProcessCounts(spool)
    counts.add_accepted("bffcb3:text")
    counts.close()
    (spool.counts / "broken.json").write_text(text)
    with caplog.at_level(logging.WARNING, logger="receiver"):
        assert [read_counts(spool).accepted for _ in range(3)] == [1, 1, 1]
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


def counted(spool: Spool, accepted: int = 1) -> ProcessCounts:
    """Give a living process that has counted, and written."""
    counts = ProcessCounts(spool)
    for _ in range(accepted):
        counts.add_accepted("bffcb3:text")
    counts._write()
    return counts


def leave_dead(spool: Spool, count: int, accepted: int = 1) -> None:
    """Leave the files of processes that ran side by side, so that none has folded another."""
    for counts in [counted(spool, accepted) for _ in range(count)]:
        counts.close()


def names(spool: Spool) -> list[str]:
    return sorted(path.name for path in spool.counts.iterdir())


def test_the_files_of_dead_processes_become_one_when_a_process_starts(spool: Spool) -> None:
    leave_dead(spool, 5, accepted=2)
    assert len(names(spool)) == 5
    before = read_counts(spool)
    ProcessCounts(spool)
    assert names(spool) == ["folded.json"]
    assert read_counts(spool) == before
    assert before.accepted == 10
    assert (spool.counts / "folded.json").stat().st_mode & 0o777 == 0o600
    counted(spool).close()
    ProcessCounts(spool)
    assert names(spool) == ["folded.json"]
    assert read_counts(spool).accepted == 11


def test_the_file_of_a_living_process_is_left_to_it(spool: Spool) -> None:
    living = counted(spool)
    counted(spool).close()
    ProcessCounts(spool)
    assert len(names(spool)) == 2
    living.add_accepted("bffcb3:text")
    living.close()
    assert read_counts(spool).accepted == 3


def test_what_is_counted_after_the_end_is_not_counted_twice(spool: Spool) -> None:
    counts = counted(spool)
    counts.close()
    ProcessCounts(spool)
    counts.add_accepted("bffcb3:text")
    counts.close()
    assert read_counts(spool).accepted == 2


@pytest.mark.parametrize("kept", [0, 1, 2, 3])
def test_a_fold_that_died_loses_nothing_and_doubles_nothing(
    spool: Spool, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It removes all files but those that are kept, as a process does that dies at its work."""
    leave_dead(spool, 3)

    def remove_some(directory: Path, found: list[str]) -> None:
        for name in found[kept:]:
            (directory / name).unlink()

    with monkeypatch.context() as patched:
        patched.setattr("receiver.counts._remove", remove_some)
        ProcessCounts(spool)
    assert len(names(spool)) == 1 + kept
    assert read_counts(spool).accepted == 3
    counted(spool).close()
    ProcessCounts(spool)
    assert read_counts(spool).accepted == 4
    ProcessCounts(spool)
    assert names(spool) == ["folded.json"]


def test_a_fold_that_died_before_its_sum_was_there_changes_nothing(
    spool: Spool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_path: Path, _text: str) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    counted(spool).close()
    before = names(spool)
    with monkeypatch.context() as patched, caplog.at_level(logging.WARNING, logger="receiver"):
        patched.setattr("receiver.counts._replace", fail)
        ProcessCounts(spool)
    assert caplog.messages == ["event=counts_not_folded error='[Errno 28] No space left on device'"]
    assert names(spool) == before
    assert read_counts(spool).accepted == 1


def test_a_reading_that_a_fold_overtakes_is_done_again(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_dead(spool, 3)
    try_read = counts_module._try_read
    read: list[str] = []

    def overtaken(path: Path) -> object:
        read.append(path.name)
        if len(read) == 3:  # the sum, and one of the files
            with monkeypatch.context() as patched:
                patched.setattr(counts_module, "_try_read", try_read)
                ProcessCounts(spool)
        return try_read(path)

    monkeypatch.setattr(counts_module, "_try_read", overtaken)
    assert read_counts(spool).accepted == 3
    assert read[4:] == ["folded.json"], "it was not read again"


def test_a_torn_sum_is_told_once_and_the_next_one_is_whole(
    spool: Spool, caplog: pytest.LogCaptureFixture
) -> None:
    (spool.counts / "folded.json").write_text("")
    with caplog.at_level(logging.WARNING, logger="receiver"):
        counted(spool).close()
        ProcessCounts(spool)
        assert read_counts(spool).accepted == 1
    assert caplog.messages == [
        "event=counts_not_read file='folded.json' error='Expecting value: line 1 column 1 (char 0)'"
    ]
    assert names(spool) == ["folded.json", "folded.torn"]


def test_two_folds_at_once_are_one(spool: Spool) -> None:
    counted(spool).close()
    before = names(spool)
    with (spool.path / "counts.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        ProcessCounts(spool)
        assert names(spool) == before
    ProcessCounts(spool)
    assert names(spool) == ["folded.json"]
