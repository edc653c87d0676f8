"""The power is cut before and after every step, and at random times: nothing acknowledged is lost.

A step is one call on which a 200 rests (`receiver.disk`). The oracle is the test's own list of
what was acknowledged, in its memory. `TORTURE_POWER_CUTS` sets the number of cuts in all.
"""

from __future__ import annotations

import contextlib
import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest
from mounts import Mount, mounted
from sizes import size

from receiver.config import SpoolSettings
from receiver.disk import Disk
from receiver.errors import DeliveryError
from receiver.record import Delivery, decode_body, split_line
from receiver.segment import Spool, mark_loaded, read_segment
from receiver.spool import Writer, recover

CUTS = size("POWER_CUTS", usual=1000, torture=20_000)
SEED = random.SystemRandom().randrange(2**32)
ROUNDS_A_SPOOL = 25  # what earlier rounds have left is at risk, too, but takes time to check
STEP_LIMIT = 200  # of one round, far above the real number
TIMEOUT_S = 20

logging.getLogger("receiver").setLevel(logging.CRITICAL)  # a thousand cuts are no news


class StepDisk(Disk):
    """Calls `cut` before or after its k-th step, or half way through it if it is a write."""

    def __init__(self, cut: Callable[[], None], at: int, when: str) -> None:
        self.step_count = 0
        self._cut = cut
        self._at = at
        self._when = when

    @contextlib.contextmanager
    def _step(self) -> Iterator[None]:
        is_it = self.step_count == self._at
        self.step_count += 1
        if is_it and self._when == "before":
            self._cut()
        yield
        if is_it and self._when != "before":
            self._cut()

    def create(self, path: Path) -> int:
        with self._step():
            return super().create(path)

    def write(self, descriptor: int, data: memoryview) -> int:
        is_torn = self._when == "within" and self.step_count == self._at
        with self._step():
            return super().write(descriptor, data[: len(data) // 2] if is_torn else data)

    def fdatasync(self, descriptor: int) -> None:
        with self._step():
            super().fdatasync(descriptor)

    def fsync(self, descriptor: int) -> None:
        with self._step():
            super().fsync(descriptor)

    def sync_directory(self, path: Path) -> None:
        with self._step():
            super().sync_directory(path)

    def truncate(self, descriptor: int, size_bytes: int) -> None:
        with self._step():
            super().truncate(descriptor, size_bytes)

    def rename(self, source: Path, target: Path) -> None:
        with self._step():
            super().rename(source, target)

    def remove(self, path: Path) -> None:
        with self._step():
            super().remove(path)


class Site:
    """A spool on a file system whose power fails, and what was acknowledged there."""

    def __init__(self, mount: Mount) -> None:
        self.mount = mount
        self.cut_count = 0
        self.acknowledged_count = 0
        self.has_power = True
        self._turn = 0
        self._round = 0
        self._start_spool()

    def _start_spool(self) -> None:
        self._turn += 1
        self.spool = Spool(self.mount.path / f"spool{self._turn}")
        self.spool.create()
        self.settings = SpoolSettings(
            path=self.spool.path, min_free_bytes=0, segment_max_bytes=3000, segment_max_age_s=0.01
        )
        self.bodies: dict[str, bytes] = {}
        self.acknowledged: set[str] = set()
        self._lock = threading.Lock()

    def cut(self) -> None:
        with self._lock:
            self.has_power = False
        self.mount.cut_power()
        self.cut_count += 1

    def submit(self, writer: Writer) -> tuple[str, Future[None]]:
        with self._lock:
            webhook_id = f"evt_{len(self.bodies)}"
            body = b'{"id":"%s","pad":"%s"}' % (
                webhook_id.encode(),
                b"x" * (len(self.bodies) % 997),
            )
            self.bodies[webhook_id] = body
        return webhook_id, writer.submit(make_delivery(webhook_id, body))

    def send(self, writer: Writer, count: int) -> None:
        """Send some deliveries at once, and note which were acknowledged."""
        with contextlib.suppress(DeliveryError):
            sent = [self.submit(writer) for _ in range(count)]
            for webhook_id, future in sent:
                with contextlib.suppress(DeliveryError):
                    future.result(TIMEOUT_S)
                    self._acknowledge(webhook_id)

    def _acknowledge(self, webhook_id: str) -> None:
        # What is answered when the power is gone reaches nobody. It has to be left out: ext4
        # may tell a sync that it runs together with a shutdown that all is well.
        with self._lock:
            if self.has_power:
                self.acknowledged.add(webhook_id)

    def check(self) -> None:
        """Start again after a cut, and compare; begin a new spool now and then."""
        self.mount.remount()
        self.has_power = True
        recover(self.spool)
        stored = self._read()
        lost = self.acknowledged - set(stored)
        assert not lost, f"{len(lost)} acknowledged events are lost: {sorted(lost)[:5]}"
        assert set(stored) <= set(self.bodies), "an event that nobody sent"
        doubled = [webhook_id for webhook_id, count in stored.items() if count > 1]
        assert not doubled, f"sent once, stored twice: {doubled[:5]}"
        self._round += 1
        if self._round % ROUNDS_A_SPOOL == 0:
            self.acknowledged_count += len(self.acknowledged)
            self._start_spool()

    def _read(self) -> Counter[str]:
        assert self.spool.open_segments() == []
        stored: Counter[str] = Counter()
        for path in [*self.spool.ready_segments(), *self.spool.loaded_segments()]:
            content = read_segment(path)
            assert content.is_sealed, f"{path} is not sealed"
            assert not content.damages, f"{path}: {content.damages}"
            for line in content.lines:
                envelope = split_line(content.data, line.start, line.end)
                body = decode_body(envelope.kind, content.data[envelope.start : envelope.end])
                assert body == self.bodies[envelope.webhook_id], "half an event, or a changed one"
                stored[envelope.webhook_id] += 1
        return stored

    def report(self, what: str) -> None:
        acknowledged = self.acknowledged_count + len(self.acknowledged)
        print(f"{what}: {self.cut_count} cuts, {acknowledged} acknowledged, 0 lost")


def make_delivery(webhook_id: str, body: bytes) -> Delivery:
    return Delivery(
        webhook_id=webhook_id,
        webhook_timestamp="1795454525",
        webhook_signature="v1,c2lnbmVk",
        received_at="2026-11-23T17:22:05.123456Z",
        body=body,
    )


@pytest.fixture(params=["ext4", "xfs"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    with mounted(request.param, tmp_path) as mount:
        site = Site(mount)
        yield site
        site.report(request.param)


def append_and_seal(site: Site, disk: Disk) -> None:
    """Take every step of the acknowledging path: new segment, appends, seals, an empty end."""
    writer = Writer(site.spool, site.settings, disk=disk)
    for count in (1, 5, 8, 2):
        site.send(writer, count)
    writer.close()


def append_and_die(site: Site) -> None:
    """Leave an open segment with a torn end behind, as a process that is killed does."""
    writer = Writer(site.spool, site.settings)
    site.send(writer, 2)
    writer._rotation.abandon()
    writer.close()
    for path in site.spool.open_segments():
        with path.open("ab") as file:
            file.write(b'{"v":1,"n":2,"webhook_id":"evt_torn')


def cut_at_each_step(site: Site, when: str, scenario: Callable[[Disk], None]) -> int:
    """Repeat a scenario, cut one step later each time, until its end comes before the cut."""
    for at in range(STEP_LIMIT):
        cuts = site.cut_count
        disk = StepDisk(site.cut, at, when)
        scenario(disk)
        site.check()
        if site.cut_count == cuts:
            return at
    raise AssertionError("the scenario never ends")


@pytest.mark.parametrize("when", ["before", "within", "after"])
def test_a_cut_at_each_step_of_append_and_seal(site: Site, when: str) -> None:
    steps = cut_at_each_step(site, when, lambda disk: append_and_seal(site, disk))
    print(f"{when} each of {steps} steps")
    assert steps > 20


@pytest.mark.parametrize("when", ["before", "within", "after"])
def test_a_cut_at_each_step_of_recovery(site: Site, when: str) -> None:
    def scenario(disk: Disk) -> None:
        append_and_die(site)
        recover(site.spool, disk)

    steps = cut_at_each_step(site, when, scenario)
    print(f"{when} each of {steps} steps")
    assert steps >= 6


@pytest.mark.timeout(3600)
def test_cuts_at_random_times(site: Site) -> None:
    chance = random.Random(SEED)
    print(f"seed {SEED}")
    for _ in range(CUTS // 2 - 60):
        live_until_cut(site, chance)
        site.check()


def live_until_cut(site: Site, chance: random.Random) -> None:
    """Let two writers, a recovery and a loader do their work until the power is gone."""
    is_over = threading.Event()
    writers = [Writer(site.spool, site.settings) for _ in range(2)]
    sizes = [chance.randrange(1, 6) for _ in writers]

    def write(writer: Writer, count: int) -> None:
        while not is_over.is_set():
            site.send(writer, count)

    def move() -> None:
        while not is_over.wait(0.002):
            with contextlib.suppress(OSError):
                recover(site.spool)
                mark_loaded(site.spool.ready_segments()[:2])

    threads = [
        threading.Thread(target=write, args=each) for each in zip(writers, sizes, strict=True)
    ]
    threads.append(threading.Thread(target=move))
    for thread in threads:
        thread.start()
    time.sleep(chance.uniform(0, 0.02))
    site.cut()
    is_over.set()
    for thread in threads:
        thread.join(TIMEOUT_S)
        assert not thread.is_alive()
    for writer in writers:
        writer.close()
