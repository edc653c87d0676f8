"""What is acknowledged is on disk, what fails is not acknowledged, what was left is sealed."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from receiver.clock import Clock
from receiver.config import SpoolSettings
from receiver.disk import Disk
from receiver.errors import SpoolFailedError, SpoolFullError
from receiver.open_segment import OpenSegment
from receiver.record import Delivery, encode_line, segment_seed
from receiver.recovery import Recovered, recover
from receiver.rotation import Rotation, SegmentNames
from receiver.scan import Damage
from receiver.segment import Spool, read_segment, segment_name
from receiver.spool import Writer
from receiver.waiting import WaitingQueue

SETTINGS = SpoolSettings(min_free_bytes=0)
START = datetime(2026, 11, 23, 17, 22, 5, 123456, tzinfo=UTC)
TIMEOUT_S = 10.0


class SetClock(Clock):
    """A clock that only a test moves."""

    def __init__(self) -> None:
        self.time = START
        self.elapsed_s = 0.0

    def now(self) -> datetime:
        return self.time

    def monotonic_s(self) -> float:
        return self.elapsed_s


class BreakingDisk(Disk):
    """A disk that fails one kind of call, writes in small pieces, or stops until it is let go."""

    def __init__(self) -> None:
        self.failing: str | None = None
        self.code = errno.EIO
        self.piece_bytes: int | None = None
        self.space_bytes: int | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.reached_gate = threading.Event()
        self.calls: list[str] = []

    def write(self, descriptor: int, data: memoryview) -> int:
        self.enter("write")
        return super().write(descriptor, data[: self.piece_bytes])

    def fdatasync(self, descriptor: int) -> None:
        self.enter("fdatasync")
        self.reached_gate.set()
        assert self.gate.wait(TIMEOUT_S)
        super().fdatasync(descriptor)

    def create(self, path: Path) -> int:
        self.enter("create")
        return super().create(path)

    def fsync(self, descriptor: int) -> None:
        self.enter("fsync")
        super().fsync(descriptor)

    def sync_directory(self, path: Path) -> None:
        self.enter(f"sync_directory {path.name}")
        super().sync_directory(path)

    def rename(self, source: Path, target: Path) -> None:
        self.enter("rename")
        super().rename(source, target)

    def free_bytes(self, path: Path) -> int:
        self.enter("free_bytes")
        return super().free_bytes(path) if self.space_bytes is None else self.space_bytes

    def enter(self, call: str) -> None:
        self.calls.append(call)
        if call == self.failing:
            raise OSError(self.code, os.strerror(self.code))


def make_delivery(number: int, size_bytes: int = 2) -> Delivery:
    return Delivery(
        webhook_id=f"evt_{number}",
        webhook_timestamp="1739571908",
        webhook_signature="v1,c2ln",
        received_at="2026-11-23T17:22:05.123456Z",
        body=b"1" * size_bytes,
    )


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    spool = Spool(tmp_path / "spool")
    spool.create()
    return spool


@pytest.fixture
def disk() -> BreakingDisk:
    return BreakingDisk()


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.fixture
def writer(spool: Spool, disk: BreakingDisk) -> Iterator[Writer]:
    writer = Writer(spool, SETTINGS, disk=disk)
    yield writer
    disk.failing, disk.space_bytes = None, None
    disk.gate.set()
    writer.close()


def durable(future: Future[None]) -> None:
    future.result(TIMEOUT_S)


def ids(paths: list[Path]) -> list[str]:
    """Read the ids of all good lines."""
    found = []
    for path in paths:
        content = read_segment(path, is_open=True)
        for line in content.lines:
            text = content.data[line.start : line.end]
            found.append(text.split(b'"webhook_id":"')[1].split(b'"')[0].decode())
    return found


def damages(paths: list[Path]) -> list[Damage]:
    return [damage for path in paths for damage in read_segment(path).damages]


# --- one file ---------------------------------------------------------------------------------


def test_a_sealed_segment_reads_back_without_damage(spool: Spool, disk: BreakingDisk) -> None:
    segment = OpenSegment(spool, "a", disk)
    segment.append([make_delivery(0), make_delivery(1)])
    segment.append([make_delivery(2)])
    segment.seal()
    assert ids(spool.ready_segments()) == ["evt_0", "evt_1", "evt_2"]
    assert damages(spool.ready_segments()) == []
    assert spool.open_segments() == []


def test_file_and_name_are_synced_before_lines_and_lines_before_the_seal_moves(
    spool: Spool, disk: BreakingDisk
) -> None:
    segment = OpenSegment(spool, "a", disk)
    segment.append([make_delivery(0)])
    segment.seal()
    assert disk.calls == [
        "create", "fsync", "sync_directory open",
        "write", "fdatasync",
        "write", "fdatasync", "rename", "sync_directory ready", "sync_directory open",
    ]  # fmt: skip


def test_a_file_is_for_its_owner_only(spool: Spool, disk: BreakingDisk) -> None:
    OpenSegment(spool, "a", disk).abandon()
    assert spool.open_segments()[0].stat().st_mode & 0o777 == 0o600


def test_short_writes_go_on_with_the_rest(spool: Spool, disk: BreakingDisk) -> None:
    disk.piece_bytes = 7
    segment = OpenSegment(spool, "a", disk)
    segment.append([make_delivery(0), make_delivery(1)])
    segment.seal()
    assert damages(spool.ready_segments()) == []


def test_an_empty_segment_is_removed_instead_of_sealed(spool: Spool, disk: BreakingDisk) -> None:
    OpenSegment(spool, "a", disk).seal()
    assert spool.open_segments() == spool.ready_segments() == []


# --- which file -------------------------------------------------------------------------------


def test_a_segment_is_sealed_when_it_is_large(spool: Spool, clock: SetClock) -> None:
    rotation = Rotation(spool, replace(SETTINGS, segment_max_bytes=300), Disk(), clock)
    for number in range(4):
        rotation.append([make_delivery(number)])
        if rotation.is_due():
            rotation.seal()
    assert [len(read_segment(path).lines) for path in spool.ready_segments()] == [2, 2]


def test_a_segment_is_sealed_when_it_is_old_even_if_nothing_arrives(
    spool: Spool, clock: SetClock
) -> None:
    rotation = Rotation(spool, replace(SETTINGS, segment_max_age_s=10), Disk(), clock)
    assert rotation.due_in_s() is None
    rotation.append([make_delivery(0)])
    clock.elapsed_s = 9
    assert rotation.due_in_s() == 1
    if rotation.is_due():
        rotation.seal()
    assert spool.ready_segments() == []
    clock.elapsed_s = 10
    assert rotation.due_in_s() == 0
    if rotation.is_due():
        rotation.seal()
    assert ids(spool.ready_segments()) == ["evt_0"]
    assert rotation.due_in_s() is None


def test_names_never_go_backwards_when_the_clock_does(spool: Spool, clock: SetClock) -> None:
    names = SegmentNames(spool, clock)
    first = names.next()
    clock.time -= timedelta(hours=1)
    second = names.next()
    clock.time += timedelta(days=1)
    third = names.next()
    assert [name[:23] for name in (first, second, third)] == [
        "20261123T172205.123456Z",
        "20261123T172205.123457Z",
        "20261124T162205.123456Z",
    ]


@pytest.mark.parametrize("state", ["open", "ready", "loaded"])
def test_names_begin_after_what_the_spool_holds(spool: Spool, clock: SetClock, state: str) -> None:
    (spool.path / state / "20301231T235959.999999Z-1-abcdef.jsonl").touch()
    assert SegmentNames(spool, clock).next()[:23] == "20310101T000000.000000Z"


@pytest.mark.parametrize("stray", ["99999999T999999.999999Z-1-abcdef", "zzz", "20261132T000000"])
def test_a_name_of_no_day_is_left_out_of_what_names_begin_after(
    spool: Spool, clock: SetClock, stray: str
) -> None:
    (spool.ready / f"{stray}.jsonl").touch()
    (spool.ready / "20301231T235959.999999Z-1-abcdef.jsonl").touch()
    assert SegmentNames(spool, clock).next()[:23] == "20310101T000000.000000Z"


def test_the_last_day_of_all_leaves_a_name_to_give(spool: Spool, clock: SetClock) -> None:
    (spool.ready / "99991231T235959.999999Z-1-abcdef.jsonl").touch()
    assert SegmentNames(spool, clock).next()[:23] == "20261123T172205.123456Z"


def test_the_first_name_does_not_wait_for_a_look_at_the_spool(
    spool: Spool, clock: SetClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    (spool.loaded / "20301231T235959.999999Z-1-abcdef.jsonl").touch()
    names = SegmentNames(spool, clock)
    monkeypatch.delattr(os, "scandir")
    assert names.next()[:23] == "20310101T000000.000000Z"


def test_a_spool_that_can_be_read_only_later_is_looked_at_for_the_first_name(
    spool: Spool, clock: SetClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    (spool.loaded / "20301231T235959.999999Z-1-abcdef.jsonl").touch()

    def fail(_path: Path) -> list[str]:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patched:
        patched.setattr(os, "scandir", fail)
        names = SegmentNames(spool, clock)
    assert names.next()[:23] == "20310101T000000.000000Z"


def test_a_clock_that_goes_back_neither_delays_nor_hastens_a_seal(
    spool: Spool, clock: SetClock
) -> None:
    rotation = Rotation(spool, replace(SETTINGS, segment_max_age_s=10), Disk(), clock)
    rotation.append([make_delivery(0)])
    clock.time -= timedelta(hours=1)
    clock.elapsed_s = 4
    assert rotation.due_in_s() == 6


def test_a_file_that_a_recovery_takes_for_a_dead_one_is_replaced(
    spool: Spool, clock: SetClock
) -> None:
    class RacingDisk(Disk):
        """Lets a recovery run between the first creation and its lock."""

        raced = False

        def create(self, path: Path) -> int:
            descriptor = super().create(path)
            if not self.raced:
                self.raced = True
                assert [found.line_count for found in recover(spool)] == [0]
            return descriptor

    rotation = Rotation(spool, SETTINGS, RacingDisk(), clock)
    rotation.append([make_delivery(0)])
    assert ids(spool.open_segments()) == ["evt_0"]


# --- group commit -----------------------------------------------------------------------------


def test_a_future_resolves_after_the_line_is_durable(writer: Writer, spool: Spool) -> None:
    durable(writer.submit(make_delivery(0)))
    assert ids(spool.open_segments()) == ["evt_0"]


def test_nothing_is_acknowledged_before_the_sync(writer: Writer, disk: BreakingDisk) -> None:
    disk.gate.clear()
    future = writer.submit(make_delivery(0))
    assert disk.reached_gate.wait(TIMEOUT_S)
    assert not future.done()
    disk.gate.set()
    durable(future)


def test_all_that_waits_shares_one_write_and_one_sync(
    writer: Writer, disk: BreakingDisk, spool: Spool
) -> None:
    disk.gate.clear()
    futures = [writer.submit(make_delivery(0))]
    assert disk.reached_gate.wait(TIMEOUT_S)
    futures += [writer.submit(make_delivery(number)) for number in range(1, 20)]
    disk.gate.set()
    for future in futures:
        durable(future)
    assert ids(spool.open_segments()) == [f"evt_{number}" for number in range(20)]
    assert disk.calls.count("write") == disk.calls.count("fdatasync") == 2


def test_closing_writes_what_waits_and_seals(
    writer: Writer, disk: BreakingDisk, spool: Spool
) -> None:
    disk.gate.clear()
    first = writer.submit(make_delivery(0))
    assert disk.reached_gate.wait(TIMEOUT_S)
    second = writer.submit(make_delivery(1))
    disk.gate.set()
    writer.close()
    durable(first)
    durable(second)
    assert ids(spool.ready_segments()) == ["evt_0", "evt_1"]
    assert damages(spool.ready_segments()) == []
    assert spool.open_segments() == []


def test_the_thread_seals_by_age_when_nothing_arrives(spool: Spool) -> None:
    class AnnouncingDisk(Disk):
        renamed = threading.Event()

        def rename(self, source: Path, target: Path) -> None:
            super().rename(source, target)
            self.renamed.set()

    disk = AnnouncingDisk()
    writer = Writer(spool, replace(SETTINGS, segment_max_age_s=0.01), disk=disk)
    durable(writer.submit(make_delivery(0)))
    assert disk.renamed.wait(TIMEOUT_S)
    assert ids(spool.ready_segments()) == ["evt_0"]
    writer.close()


def test_a_closed_writer_takes_nothing(writer: Writer) -> None:
    writer.close()
    assert writer.problem() == "the writer is closed"
    with pytest.raises(SpoolFailedError, match=r"^the writer is closed$"):
        writer.submit(make_delivery(0))


def test_a_request_that_gave_up_before_its_turn_is_not_written(
    writer: Writer, disk: BreakingDisk, spool: Spool
) -> None:
    disk.gate.clear()
    first = writer.submit(make_delivery(0))
    assert disk.reached_gate.wait(TIMEOUT_S)
    assert writer.submit(make_delivery(1)).cancel()
    last = writer.submit(make_delivery(2))
    disk.gate.set()
    durable(first)
    durable(last)
    assert ids(spool.open_segments()) == ["evt_0", "evt_2"]


def test_a_queue_is_bounded_by_count_and_by_bytes() -> None:
    queue = WaitingQueue(max_count=2, max_bytes=100)
    queue.put(make_delivery(0, size_bytes=80))
    with pytest.raises(SpoolFullError, match=r"^80 bytes wait for the disk already$"):
        queue.put(make_delivery(1, size_bytes=21))
    queue.put(make_delivery(1, size_bytes=20))
    with pytest.raises(SpoolFullError, match=r"^2 deliveries wait for the disk already$"):
        queue.put(make_delivery(2, size_bytes=0))
    assert [waiting.delivery.webhook_id for waiting in queue.take_all(0)] == ["evt_0", "evt_1"]
    queue.put(make_delivery(3, size_bytes=200))  # alone, any size that passed the door is taken


# --- failures ---------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS])
@pytest.mark.parametrize("call", ["create", "fsync", "sync_directory open", "write", "fdatasync"])
def test_after_a_failed_call_nobody_is_acknowledged_and_the_next_batch_has_a_new_file(
    writer: Writer, disk: BreakingDisk, spool: Spool, call: str, code: int
) -> None:
    if call in ("write", "fdatasync"):
        durable(writer.submit(make_delivery(0)))
    before = spool.open_segments()
    disk.failing, disk.code = call, code
    with pytest.raises(SpoolFailedError) as failed:
        durable(writer.submit(make_delivery(1)))
    assert str(failed.value) == (
        f"the spool could not take the event: [Errno {code}] {os.strerror(code)}"
    )
    assert writer.problem() == "the last write failed"
    contents = {path: path.read_bytes() for path in before}

    disk.failing = None
    durable(writer.submit(make_delivery(2)))
    assert writer.problem() is None
    assert {path: path.read_bytes() for path in before} == contents, "an abandoned file was written"
    new = [path for path in spool.open_segments() if path not in before]
    assert "evt_2" in ids(new)


@pytest.mark.parametrize("call", ["write", "fdatasync"])
def test_everyone_in_a_failed_batch_is_told(writer: Writer, disk: BreakingDisk, call: str) -> None:
    disk.gate.clear()
    first = writer.submit(make_delivery(0))
    assert disk.reached_gate.wait(TIMEOUT_S)
    others = [writer.submit(make_delivery(number)) for number in range(1, 5)]
    disk.failing = call
    disk.gate.set()
    durable(first)
    for future in others:
        with pytest.raises(SpoolFailedError):
            durable(future)


@pytest.mark.parametrize("call", ["write", "fdatasync", "rename", "sync_directory ready"])
def test_a_seal_that_fails_loses_nothing_and_recovery_ends_it(
    writer: Writer, disk: BreakingDisk, spool: Spool, call: str
) -> None:
    durable(writer.submit(make_delivery(0)))
    disk.failing = call
    writer.close()
    disk.failing = None
    recover(spool)
    assert ids(spool.ready_segments()) == ["evt_0"]
    assert damages(spool.ready_segments()) == []
    assert spool.open_segments() == []


def test_a_failure_that_is_no_disk_failure_neither_acknowledges_nor_ends_the_thread(
    writer: Writer,
) -> None:
    with pytest.raises(SpoolFailedError, match=r"^the spool could not take the event: "):
        durable(writer.submit(replace(make_delivery(0), webhook_id="\ud800")))
    durable(writer.submit(make_delivery(1)))


def refuse_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every start of a thread fail, as a system does that has none left."""

    def fail(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fail)


def test_a_writer_whose_thread_did_not_start_says_so_and_tries_again(
    writer: Writer, spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        refuse_threads(patched)
        with pytest.raises(SpoolFailedError) as failed:
            writer.submit(make_delivery(0))
        assert str(failed.value) == "the writer's thread did not start: can't start new thread"
        assert writer.problem() == "the last write failed"
    durable(writer.submit(make_delivery(1)))
    assert writer.problem() is None
    assert ids(spool.open_segments()) == ["evt_1"]


def test_readiness_is_red_for_a_while_after_a_failure(
    spool: Spool, disk: BreakingDisk, clock: SetClock
) -> None:
    writer = Writer(spool, SETTINGS, disk=disk, clock=clock)
    disk.failing = "write"
    with pytest.raises(SpoolFailedError):
        durable(writer.submit(make_delivery(0)))
    clock.elapsed_s = 29.9
    assert writer.problem() == "the last write failed"
    clock.elapsed_s = 30.0  # somebody has to try again, or it would stay red for ever
    assert writer.problem() is None
    writer.close()


def test_too_little_space_refuses_early_and_heals_by_itself(
    spool: Spool, disk: BreakingDisk
) -> None:
    writer = Writer(spool, replace(SETTINGS, min_free_bytes=1000), disk=disk)
    disk.space_bytes = 999
    with pytest.raises(SpoolFullError, match=r"^less space is left than spool\.min_free_bytes$"):
        durable(writer.submit(make_delivery(0)))
    assert writer.problem() == "less space is left than spool.min_free_bytes"
    assert "write" not in disk.calls
    disk.space_bytes = 1000
    durable(writer.submit(make_delivery(1)))
    assert writer.problem() is None
    writer.close()


def test_a_spool_that_cannot_be_reached_is_a_problem(writer: Writer, disk: BreakingDisk) -> None:
    disk.failing = "free_bytes"
    assert writer.problem() == "the spool cannot be reached: [Errno 5] Input/output error"


def test_readiness_is_red_while_the_disk_does_not_answer(
    spool: Spool, disk: BreakingDisk, clock: SetClock
) -> None:
    writer = Writer(spool, SETTINGS, disk=disk, clock=clock)
    disk.gate.clear()
    future = writer.submit(make_delivery(0))
    assert disk.reached_gate.wait(TIMEOUT_S)
    clock.elapsed_s = 2.0
    assert writer.problem() is None
    clock.elapsed_s = 2.1
    # Asked first, the disk would not answer this either.
    disk.failing = "free_bytes"
    assert writer.problem() == "the disk has not answered for more than 2 s"
    disk.failing = None
    disk.gate.set()
    durable(future)
    assert writer.problem() is None
    writer.close()


def test_readiness_is_red_while_a_seal_does_not_end(spool: Spool, clock: SetClock) -> None:
    class StuckDisk(Disk):
        reached, gate = threading.Event(), threading.Event()

        def rename(self, source: Path, target: Path) -> None:
            self.reached.set()
            assert self.gate.wait(TIMEOUT_S)
            super().rename(source, target)

    disk = StuckDisk()
    writer = Writer(spool, replace(SETTINGS, segment_max_bytes=1), disk=disk, clock=clock)
    durable(writer.submit(make_delivery(0)))
    assert disk.reached.wait(TIMEOUT_S)
    clock.elapsed_s = 2.1
    assert writer.problem() == "the disk has not answered for more than 2 s"
    disk.gate.set()
    writer.close()


@pytest.mark.parametrize("bounds", [{"max_count": 1}, {"max_bytes": 2}])
def test_readiness_is_red_while_the_queue_is_full(
    spool: Spool, disk: BreakingDisk, bounds: dict[str, int]
) -> None:
    writer = Writer(spool, SETTINGS, disk=disk, queue=WaitingQueue(**bounds))
    disk.gate.clear()
    futures = [writer.submit(make_delivery(0))]
    assert disk.reached_gate.wait(TIMEOUT_S)
    assert writer.problem() is None
    futures.append(writer.submit(make_delivery(1)))
    assert writer.problem() == "too much waits for the disk already"
    disk.gate.set()
    for future in futures:
        durable(future)
    writer.close()


# --- recovery ---------------------------------------------------------------------------------


def leave_open(spool: Spool, name: str, count: int) -> Path:
    """Leave a segment as a process that died does."""
    segment = OpenSegment(spool, name, Disk())
    segment.append([make_delivery(number) for number in range(count)])
    segment.abandon()
    return spool.open / f"{name}.jsonl"


def test_recovery_seals_what_a_dead_process_left(spool: Spool) -> None:
    leave_open(spool, "a", 3)
    assert recover(spool) == [Recovered(name="a", line_count=3, damages=())]
    assert ids(spool.ready_segments()) == ["evt_0", "evt_1", "evt_2"]
    assert damages(spool.ready_segments()) == []
    assert recover(spool) == []


def test_recovery_never_touches_the_file_of_a_living_writer(writer: Writer, spool: Spool) -> None:
    durable(writer.submit(make_delivery(0)))
    assert recover(spool) == []
    durable(writer.submit(make_delivery(1)))
    assert ids(spool.open_segments()) == ["evt_0", "evt_1"]


def test_recovery_removes_empty_files(spool: Spool) -> None:
    OpenSegment(spool, "a", Disk()).abandon()
    assert recover(spool) == [Recovered(name="a", line_count=0, damages=())]
    assert spool.open_segments() == spool.ready_segments() == []


def test_recovery_leaves_stray_files_alone_and_seals_all_others(spool: Spool) -> None:
    odd = "99999999T999999.999999Z-1-abcdef"
    leave_open(spool, odd, 1)
    leave_open(spool, "b", 2)
    names = (b"\xff.jsonl", b"a\xc3\xa9.jsonl", b".jsonl")
    strays = [spool.open / os.fsdecode(name) for name in names]
    for path in strays:
        path.write_bytes(b"not ours")
    (spool.open / "c.jsonl").mkdir()
    assert [found.name for found in recover(spool)] == [odd, "b"]
    assert ids(spool.ready_segments()) == ["evt_0", "evt_0", "evt_1"]
    assert [path.read_bytes() for path in strays] == [b"not ours"] * 3


@pytest.mark.parametrize("kept_bytes", [1, 100, -1])
def test_recovery_cuts_a_torn_end_and_keeps_its_bytes(spool: Spool, kept_bytes: int) -> None:
    path = leave_open(spool, "a", 2)
    whole = path.read_bytes()
    torn = encode_line(make_delivery(2), n=2, seed=segment_seed("a"))[:kept_bytes]
    path.write_bytes(whole + torn)
    damage = Damage(offset=len(whole), size_bytes=len(torn), reason="the last line is torn")
    assert recover(spool) == [Recovered(name="a", line_count=2, damages=(damage,))]
    assert (spool.quarantine / f"a-{len(whole):012d}.bin").read_bytes() == torn
    assert ids(spool.ready_segments()) == ["evt_0", "evt_1"]
    assert damages(spool.ready_segments()) == []


def test_recovery_keeps_damage_in_the_middle_in_place_and_what_follows_it(spool: Spool) -> None:
    path = leave_open(spool, "a", 3)
    data = bytearray(path.read_bytes())
    size_bytes = len(data) // 3
    data[size_bytes + 40] ^= 1
    path.write_bytes(data)
    [recovered] = recover(spool)
    assert recovered.line_count == 2
    bad = bytes(data[size_bytes : 2 * size_bytes])
    assert (spool.quarantine / f"a-{size_bytes:012d}.bin").read_bytes() == bad
    [sealed] = spool.ready_segments()
    assert sealed.read_bytes().startswith(data)
    content = read_segment(sealed)
    assert content.is_sealed
    assert ids([sealed]) == ["evt_0", "evt_2"]
    assert tuple(content.damages) == recovered.damages


def test_recovery_mends_a_newline_that_is_all_that_is_bad(spool: Spool) -> None:
    path = leave_open(spool, "a", 2)
    path.write_bytes(path.read_bytes()[:-1] + b"X")
    [recovered] = recover(spool)
    assert recovered.line_count == 2
    assert ids(spool.ready_segments()) == ["evt_0", "evt_1"]
    assert damages(spool.ready_segments()) == []


def test_recovery_takes_a_seal_that_was_written_but_not_moved(
    spool: Spool, disk: BreakingDisk
) -> None:
    segment = OpenSegment(spool, "a", disk)
    segment.append([make_delivery(0)])
    disk.failing = "rename"
    with pytest.raises(OSError, match="Input/output error"):
        segment.seal()
    segment.abandon()
    before = spool.open_segments()[0].read_bytes()
    disk.failing = None
    disk.calls.clear()
    assert recover(spool, disk) == [Recovered(name="a", line_count=1, damages=())]
    assert disk.calls == ["fdatasync", "rename", "sync_directory ready", "sync_directory open"]
    assert spool.ready_segments()[0].read_bytes() == before


@pytest.mark.parametrize("call", ["write", "fdatasync", "rename", "sync_directory ready"])
def test_a_recovery_that_fails_can_be_run_again(
    spool: Spool, disk: BreakingDisk, call: str
) -> None:
    path = leave_open(spool, "a", 2)
    path.write_bytes(path.read_bytes() + b"torn")
    leave_open(spool, "b", 1)
    disk.failing = call
    assert recover(spool, disk) == []
    recover(spool)
    assert ids(spool.ready_segments()) == ["evt_0", "evt_1", "evt_0"]
    assert damages(spool.ready_segments()) == []


def test_two_writers_have_a_file_each(spool: Spool) -> None:
    writers = [Writer(spool, SETTINGS) for _ in range(2)]
    for number, writer in enumerate(writers):
        durable(writer.submit(make_delivery(number)))
    assert len(spool.open_segments()) == 2
    for writer in writers:
        writer.close()
    assert sorted(ids(spool.ready_segments())) == ["evt_0", "evt_1"]


def test_a_lock_that_is_held_keeps_recovery_away(spool: Spool) -> None:
    path = leave_open(spool, "a", 1)
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert recover(spool) == []
    assert [found.name for found in recover(spool)] == [segment_name(path)]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_child_of_a_fork_has_a_file_of_its_own(writer: Writer, spool: Spool) -> None:
    durable(writer.submit(make_delivery(0)))
    child = os.fork()
    if child == 0:
        status = 1
        try:
            durable(writer.submit(make_delivery(1)))
            writer.close()
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert ids(spool.ready_segments()) == ["evt_1"]
    durable(writer.submit(make_delivery(2)))
    assert ids(spool.open_segments()) == ["evt_0", "evt_2"]
