"""The power of ext4 and xfs is cut: nothing acknowledged is lost, halved, doubled or invented.

Before, within and after each call to the system of append, seal, recover, quarantine and mark
loaded; and at random times under several processes and within the recovery that follows. The oracle
is the memory of the test. `TORTURE_POWER_CUTS` sets the number of random cuts.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import logging
import multiprocessing
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from mounts import Mount, mounted
from sizes import LIMIT_S, size

from receiver.config import SpoolSettings
from receiver.disk import Disk
from receiver.errors import DeliveryError
from receiver.open_segment import OpenSegment
from receiver.record import Delivery, decode_line, segment_seed
from receiver.segment import Spool, mark_loaded, read_segment, segment_name
from receiver.spool import Writer, recover

CUTS = size("POWER_CUTS", usual=540, torture=20_000)  # some 470 more are at each call
SEED = random.SystemRandom().randrange(2**32)
SETTINGS = SpoolSettings(min_free_bytes=0, segment_max_bytes=9000)
KEPT_SEGMENTS = 30  # of earlier rounds, at risk in every later cut
TIMEOUT_S = 30.0
CALLS = ["open", "write", "fdatasync", "fsync", "ftruncate", "rename", "unlink"]
TORN = b'{"v":1,"n":2,"webhook_id":"evt_to'
# An id, and when it was acknowledged, on the clock that all processes share.
Answer = tuple[str, float]
STRAY = b"what no receiver wrote\n"


def make_delivery(webhook_id: str) -> Delivery:
    """Make a delivery whose body, of up to three pages, follows from its id."""
    fill = hashlib.sha256(webhook_id.encode()).hexdigest()
    body = b'{"id":"%b","fill":"%b"}' % (
        webhook_id.encode(),
        fill.encode() * (int(fill[:4], 16) % 192),
    )
    return Delivery(
        webhook_id=webhook_id,
        webhook_timestamp="1795454525",
        webhook_signature="v1,c2lnbmVk",
        received_at="2026-11-23T17:22:05.123456Z",
        body=body,
    )


class Power:
    """Counts the system's calls, and cuts before, within or after the chosen one."""

    def __init__(self, mount: Mount, at: int | None = None, when: str = "") -> None:
        self.calls: list[str] = []
        self.is_cut = False
        self._mount = mount
        self._at = at
        self._when = when

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            for name in CALLS:
                patch.setattr(os, name, partial(self._call, name, getattr(os, name)))
            yield

    def _call(self, name: str, function: Callable, *arguments: object, **options: object) -> object:
        if self.is_cut:
            return function(*arguments, **options)
        is_it = len(self.calls) == self._at
        self.calls.append(name)
        if is_it and self._when == "within":
            descriptor, data = arguments
            function(descriptor, data[: len(data) // 2])
            # As a kernel that has written back one half just before: else it would be gone.
            os.fsync(descriptor)
        if is_it and self._when != "after":
            self.cut()
        try:
            return function(*arguments, **options)
        finally:  # a call may fail as it should: there is nothing to unlink, say
            if is_it and self._when == "after":
                self.cut()

    def cut(self) -> None:
        self.is_cut = True
        self._mount.cut_power()


class Ledger:
    """What was sent and what was acknowledged, against what the spool holds after each cut."""

    def __init__(self, mount: Mount, name: str) -> None:
        self.spool = Spool(mount.path / name)
        self.spool.create()
        self.cut_count = 0
        self.acknowledged_count = 0
        self.late_count = 0  # answers that a machine without power would not have sent
        self.sent: set[str] = set()
        self.acknowledged: set[str] = set()
        self.strays: dict[str, bytes] = {}  # damage that a scenario has put in, by segment
        self._mount = mount
        self._kept: dict[str, tuple[str, list[str]]] = {}  # name: its digest, its ids
        self._numbers = itertools.count()

    def new_ids(self, count: int) -> list[str]:
        return [f"evt_{next(self._numbers)}" for _ in range(count)]

    def add(self, sent: list[str], acknowledged: list[str]) -> None:
        self.sent.update(sent)
        self.acknowledged.update(acknowledged)
        self.acknowledged_count += len(acknowledged)

    def add_timely(self, sent: list[str], answered: list[Answer], cut_at_s: float) -> None:
        """Believe what was answered before the cut began.

        A machine without power answers nobody, but a sync that runs together with the shutdown
        ioctl may say that all is well.
        """
        timely = [webhook_id for webhook_id, at_s in answered if at_s < cut_at_s]
        self.late_count += len(answered) - len(timely)
        self.add(sent, timely)

    def remount(self) -> None:
        self._mount.remount()
        self.cut_count += 1

    def check(self) -> None:
        """Recover, and compare every segment, old and new, with what is known."""
        recover(self.spool)
        assert self.spool.open_segments() == []
        paths = [*self.spool.loaded_segments(), *self.spool.ready_segments()]
        present = {segment_name(path): path for path in paths}
        assert len(present) == len(paths), "a segment under two names"
        assert not self._kept.keys() - present.keys(), "a segment of an earlier round is gone"
        for name, path in present.items():
            data = path.read_bytes()
            digest = hashlib.sha256(data).hexdigest()
            if name not in self._kept:
                self._kept[name] = (digest, self._read(path))
            assert self._kept[name][0] == digest, f"{path} of an earlier round has changed"
        self._check_ids()
        self._check_strays(present)
        self._expire(paths)

    def _read(self, path: Path) -> list[str]:
        content = read_segment(path)
        assert content.is_sealed, f"{path} is not sealed"
        damages = [content.data[damage.offset : damage.end] for damage in content.damages]
        assert damages == [STRAY] * (self.strays.get(content.name) == STRAY), content.damages
        seed = segment_seed(content.name)
        lines = [
            decode_line(content.data[each.start : each.end], seed=seed) for each in content.lines
        ]
        for line in lines:
            assert line.delivery == make_delivery(line.delivery.webhook_id), "half an event"
        return [line.delivery.webhook_id for line in lines]

    def _check_ids(self) -> None:
        stored = [webhook_id for _, ids in self._kept.values() for webhook_id in ids]
        assert len(stored) == len(set(stored)), "an event is stored twice"
        lost = self.acknowledged.difference(stored)
        assert not lost, f"{len(lost)} acknowledged events are lost: {sorted(lost)[:5]}"
        invented = set(stored) - self.sent
        assert not invented, f"nobody sent {sorted(invented)[:5]}"

    def _check_strays(self, present: dict[str, Path]) -> None:
        for name, data in self.strays.items():
            found = [path.read_bytes() for path in self.spool.quarantine.glob(f"{name}-*.bin")]
            # A recovery that was cut may have left half a seal, which is kept there as well.
            assert data in found, f"{name}: {data!r} is not in quarantine, but {found}"
            assert name in present
        self.strays.clear()

    def _expire(self, paths: list[Path]) -> None:
        """Remove the oldest segments, as retention does, unsynced: they may come back."""
        for path in sorted(paths, key=lambda path: path.name)[:-KEPT_SEGMENTS]:
            self.acknowledged.difference_update(self._kept.pop(segment_name(path))[1])
            path.unlink()

    def report(self, what: str) -> None:
        print(
            f"{what}: {self.cut_count} cuts, {self.acknowledged_count} acknowledged, "
            "0 lost, 0 half, 0 invented, 0 doubled, 0 earlier segments damaged"
            f" ({self.late_count} answers during the cut not counted)"
        )


@pytest.fixture(scope="module", params=["ext4", "xfs"])
def mount(request: pytest.FixtureRequest, tmp_path_factory) -> Iterator[Mount]:
    logging.getLogger("receiver").setLevel(logging.CRITICAL)  # a thousand cuts are no news
    with mounted(request.param, tmp_path_factory.mktemp(request.param)) as mount:
        yield mount
    logging.getLogger("receiver").setLevel(logging.NOTSET)


# --- each system call -------------------------------------------------------------------------


def append_and_seal(ledger: Ledger) -> Callable[[], None]:
    """Append one by one, and seal when the writer is closed, twice."""
    ids = [f"{webhook_id}_{letter}" for webhook_id in ledger.new_ids(1) for letter in "abcdef"]
    bodies = [make_delivery(webhook_id) for webhook_id in ids]

    def act() -> None:
        acknowledged = []
        for writer_bodies in (bodies[:3], bodies[3:]):
            writer = Writer(ledger.spool, SpoolSettings(min_free_bytes=0))
            for delivery in writer_bodies:
                with contextlib.suppress(DeliveryError):
                    writer.submit(delivery).result(TIMEOUT_S)
                    acknowledged.append(delivery.webhook_id)
            writer.close()
        ledger.add(ids, acknowledged)

    return act


def recover_orphans(ledger: Ledger) -> Callable[[], None]:
    """Leave each kind of file that a crash can leave, durably; then recover them."""
    leave(ledger, "whole")
    leave(ledger, "torn", stray=TORN)
    leave(ledger, "hit", stray=STRAY, goes_on=True)
    leave(ledger, "unmoved", is_sealed=True)
    leave(ledger, "empty", count=0)
    return partial(recover, ledger.spool)


def leave(
    ledger: Ledger,
    kind: str,
    *,
    count: int = 2,
    stray: bytes = b"",
    goes_on: bool = False,
    is_sealed: bool = False,
) -> None:
    """Leave one open segment: its lines are acknowledged, and then comes what should not be."""
    ids = ledger.new_ids(count + goes_on)
    name = f"{kind}-{len(ledger.sent)}-{ledger.cut_count}"
    segment = OpenSegment(ledger.spool, name, Unmoving())
    if count:
        segment.append([make_delivery(webhook_id) for webhook_id in ids[:count]])
    if stray:
        with (ledger.spool.open / f"{name}.jsonl").open("ab") as file:
            file.write(stray)
            file.flush()
            os.fsync(file.fileno())
        ledger.strays[name] = stray
    if goes_on:
        segment.append([make_delivery(ids[-1])])
    if is_sealed:
        with contextlib.suppress(OSError):
            segment.seal()
    segment.abandon()
    ledger.add(ids, ids)


class Unmoving(Disk):
    """Stops a seal before its rename."""

    def rename(self, source: Path, target: Path) -> None:
        raise OSError("not moved")


def mark_three_loaded(ledger: Ledger) -> Callable[[], None]:
    """Mark segments as a load does, after those of the rounds before."""
    mark_loaded(ledger.spool.ready_segments())
    for number in range(3):
        leave(ledger, f"ready{number}")
    recover(ledger.spool)
    return partial(mark_loaded, ledger.spool.ready_segments())


@pytest.mark.parametrize("prepare", [append_and_seal, recover_orphans, mark_three_loaded])
def test_a_cut_at_each_system_call(mount: Mount, prepare: Callable) -> None:
    ledger = Ledger(mount, prepare.__name__)
    calls = run_until_cut(mount, ledger, prepare).calls
    points = [
        (at, when)
        for at, name in enumerate(calls)
        for when in ("before", "within", "after")
        if when != "within" or name == "write"
    ]
    for at, when in points:
        power = run_until_cut(mount, ledger, prepare, at, when)
        assert power.is_cut, f"call {at} of {calls} was never reached: {power.calls}"
    assert {"fsync", "rename"} <= set(calls)
    ledger.report(f"{mount.kind}, {prepare.__name__}, each of {len(calls)} calls")


def run_until_cut(mount, ledger, prepare, at: int | None = None, when: str = "") -> Power:
    """Run one scenario, check what is left, and give the power with the calls it has seen."""
    act = prepare(ledger)
    power = Power(mount, at, when)
    with power.watched(), contextlib.suppress(OSError):
        act()
    ledger.remount()
    try:
        ledger.check()
    except AssertionError as error:
        raise AssertionError(f"cut {when} call {at} of {power.calls}: {error}") from error
    return power


# --- processes --------------------------------------------------------------------------------


def serve_rounds(pipe: Connection, path: Path, worker: int) -> None:
    """In a process of its own: append until the power is gone, tell what was answered, again.

    The first answer of a round is announced by a None.
    """
    logging.disable()
    while (turn := pipe.recv()) is not None:
        announce = threading.Lock()

        def first() -> None:
            if announce.acquire(blocking=False):  # noqa: B023 - called in this turn only
                pipe.send(None)

        pipe.send(append_until_cut(Spool(path), f"evt_{turn}_{worker}", first))


def append_until_cut(
    spool: Spool, prefix: str, on_answer: Callable[[], None]
) -> tuple[list[str], list[Answer]]:
    writer = Writer(spool, SETTINGS)
    sent: list[str] = []
    answered: list[Answer] = []

    def send(client: int) -> None:
        with contextlib.suppress(DeliveryError):
            for number in itertools.count():
                delivery = make_delivery(f"{prefix}_{client}_{number}")
                sent.append(delivery.webhook_id)
                writer.submit(delivery).result(TIMEOUT_S)
                answered.append((delivery.webhook_id, time.monotonic()))
                on_answer()

    clients = [threading.Thread(target=send, args=[client]) for client in range(3)]
    for client in clients:
        client.start()
    for client in clients:
        client.join(TIMEOUT_S)
    writer.close()
    return sent, answered


@contextlib.contextmanager
def processes(path: Path, count: int) -> Iterator[list[Connection]]:
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe() for _ in range(count)]
    started = [
        context.Process(target=serve_rounds, args=(theirs, path, worker), daemon=True)
        for worker, (_, theirs) in enumerate(pipes)
    ]
    for process in started:
        process.start()
    try:
        yield [ours for ours, _ in pipes]
        for ours, _ in pipes:
            ours.send(None)
        for process in started:
            process.join(TIMEOUT_S)
    finally:
        for process in started:
            process.kill()
            process.join()


@contextlib.contextmanager
def caretaker(spool: Spool) -> Iterator[None]:
    """Recover and mark loaded, without a pause, beside the living writers."""
    is_over = threading.Event()

    def run() -> None:
        while not is_over.wait(0.001):
            with contextlib.suppress(OSError):
                recover(spool)
                mark_loaded(spool.ready_segments()[:2])

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


@pytest.mark.timeout(LIMIT_S)
def test_cuts_under_several_processes_and_within_the_recovery_that_follows(mount: Mount) -> None:
    chance = random.Random(SEED)
    print(f"seed {SEED}")
    ledger = Ledger(mount, "processes")
    with processes(ledger.spool.path, 2) as pipes:
        turn = 0
        while ledger.cut_count < CUTS // 2:
            turn += 1
            cut_beside(mount, ledger, pipes, turn, chance)
            if chance.random() < 0.5:
                cut_recovery(mount, ledger, chance)
            ledger.check()
    assert ledger.acknowledged_count > ledger.cut_count
    ledger.report(f"{mount.kind}, two processes")


def cut_beside(mount: Mount, ledger: Ledger, pipes: list, turn: int, chance) -> None:
    with caretaker(ledger.spool):
        for pipe in pipes:
            pipe.send(turn)
        if chance.random() < 0.8:  # else some cuts come before the first segment has a name
            pipes[0].poll(TIMEOUT_S)
        time.sleep(chance.uniform(0, 0.03))
        cut_at_s = time.monotonic()
        mount.cut_power()
        for pipe in pipes:
            ledger.add_timely(*receive(pipe), cut_at_s)
    ledger.remount()


def cut_recovery(mount: Mount, ledger: Ledger, chance: random.Random) -> None:
    power = Power(mount, chance.randrange(20), chance.choice(["before", "after"]))
    with power.watched(), contextlib.suppress(OSError):
        recover(ledger.spool)
    ledger.remount()


def receive(pipe: Connection) -> tuple[list[str], list[Answer]]:
    """Wait for what a process has sent and been answered in this round."""
    answer = None
    while answer is None:
        assert pipe.poll(TIMEOUT_S), "a process does not answer"
        answer = pipe.recv()
    return answer
