"""A clock that jumps costs no event: names, order and ages hold, and a wrong one is told.

The wall clock is injected into the real receiver (the application, its writer, its counts); what it
is compared with is the order in which deliveries were sent and acknowledged.
"""

from __future__ import annotations

import base64
import hmac
import json
import logging
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from flask import Flask

from pipelines.cli import main
from pipelines.exit_codes import ExitCode
from receiver.app import INTAKE_KEY, WEBHOOK_PATH, create_app
from receiver.clock import Clock, format_instant
from receiver.config import ReceiverSettings, Settings, SpoolSettings
from receiver.counts import ProcessCounts, read_counts
from receiver.disk import Disk
from receiver.record import Delivery, split_line
from receiver.rotation import Rotation
from receiver.segment import Spool, read_segment

RAW_KEY = bytes(range(24))
SECRET = "whsec_" + base64.b64encode(RAW_KEY).decode()
MAX_AGE_S = 10.0
START = datetime(2026, 11, 23, 17, 22, 5, 123456, tzinfo=UTC)
# Where the clock stands after a jump; 2106 is past the end of 32-bit seconds.
JUMPS = {
    "an hour back": START - timedelta(hours=1),
    "a day forward": START + timedelta(days=1),
    "in 2106": datetime(2106, 2, 7, 6, 28, 16, tzinfo=UTC),
    "in 1970": datetime(1970, 1, 1, tzinfo=UTC),
    "not at all": START,
}


class SetClock(Clock):
    """A wall clock and a monotonic one that only a test moves, each by itself."""

    def __init__(self, now: datetime = START) -> None:
        self.time = now
        self.elapsed_s = 0.0

    def now(self) -> datetime:
        return self.time

    def monotonic_s(self) -> float:
        return self.elapsed_s


@pytest.fixture
def spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Spool:
    monkeypatch.chdir(tmp_path)
    spool = Spool(Path("spool"))
    spool.create()
    return spool


def make_rotation(spool: Spool, clock: Clock) -> Rotation:
    settings = SpoolSettings(path=spool.path, min_free_bytes=0, segment_max_age_s=MAX_AGE_S)
    return Rotation(spool, settings, Disk(), clock)


def make_delivery(number: int) -> Delivery:
    return Delivery(
        webhook_id=f"evt_{number:03d}",
        webhook_timestamp="1739571908",
        webhook_signature="v1,c2ln",
        received_at="2026-11-23T17:22:05.123456Z",
        body=b"{}",
    )


def ids_in_order(spool: Spool) -> list[str]:
    """Give the ids as a load takes them: segments by name, then lines."""
    ids = []
    for path in spool.ready_segments():
        content = read_segment(path)
        assert content.damages == []
        ids += [split_line(content.data, start, end).webhook_id for start, end, _ in content.lines]
    return ids


# --- segments


@pytest.mark.parametrize("first", JUMPS)
@pytest.mark.parametrize("second", JUMPS)
def test_segments_keep_order_and_unique_names_whenever_the_clock_jumps(
    spool: Spool, first: str, second: str
) -> None:
    """Jump within a segment and between two; each also over a restart of the process."""
    clock = SetClock()
    rotation = make_rotation(spool, clock)
    names = set()
    number = 0
    for jump in (first, second, first):
        for is_restart in (False, True):
            rotation.append([make_delivery(number)])
            names |= {path.name for path in spool.open_segments()}
            clock.time = JUMPS[jump]
            rotation.append([make_delivery(number + 1)])
            number += 2
            rotation.seal()
            if is_restart:
                rotation = make_rotation(spool, clock)
    assert ids_in_order(spool) == [f"evt_{expected:03d}" for expected in range(number)]
    assert names == {path.name for path in spool.ready_segments()}
    assert len(names) == 6


def test_many_segments_of_one_instant_keep_their_order(spool: Spool) -> None:
    """A clock that stands still is the worst that a coarse one can do."""
    rotation = make_rotation(spool, SetClock())
    for number in range(200):
        rotation.append([make_delivery(number)])
        rotation.seal()
    assert ids_in_order(spool) == [f"evt_{number:03d}" for number in range(200)]


@pytest.mark.parametrize("jump", JUMPS)
def test_the_age_of_a_segment_does_not_follow_a_jump(spool: Spool, jump: str) -> None:
    clock = SetClock()
    rotation = make_rotation(spool, clock)
    rotation.append([make_delivery(0)])
    clock.elapsed_s, clock.time = MAX_AGE_S - 1, JUMPS[jump]
    if rotation.is_due():
        rotation.seal()
    assert (rotation.due_in_s(), spool.ready_segments()) == (1.0, [])
    clock.elapsed_s = MAX_AGE_S
    if rotation.is_due():
        rotation.seal()
    assert ids_in_order(spool) == ["evt_000"]


# --- deliveries


class Door:
    """The application on a clock of its own, and senders whose clock is right or not."""

    def __init__(self, clock: SetClock) -> None:
        settings = Settings(
            spool=SpoolSettings(path=Path("spool"), min_free_bytes=0),
            receiver=ReceiverSettings(webhook_secret=(SECRET,)),
        )
        self.app: Flask = create_app(settings, clock=clock)
        self._client = self.app.test_client()
        self._count = 0

    def send(self, signed_at: datetime) -> int:
        """Send a new event signed at this time; give the status."""
        self._count += 1
        body = b'{"id":"evt_%03d"}' % self._count
        given = {
            "webhook-id": f"evt_{self._count:03d}",
            "webhook-timestamp": str(int(signed_at.timestamp())),
        }
        text = f"{given['webhook-id']}.{given['webhook-timestamp']}.".encode() + body
        digest = base64.b64encode(hmac.digest(RAW_KEY, text, "sha256")).decode()
        headers = given | {"webhook-signature": f"v1,{digest}"}
        return self._client.post(WEBHOOK_PATH, data=body, headers=headers).status_code

    def close(self) -> None:
        self.app.extensions[INTAKE_KEY].close()


@pytest.fixture
def open_door(spool: Spool) -> Iterator[Callable[[SetClock], Door]]:
    doors = []

    def make(clock: SetClock) -> Door:
        doors.append(Door(clock))
        return doors[-1]

    yield make
    for door in doors:
        door.close()


def status(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, dict]:
    capsys.readouterr()
    code = main(["status", "--json", *options])
    return code, json.loads(capsys.readouterr().out)


# The receiver's clock is off by so much; the sender's is right.
OFF_S = {"an hour back": -3600, "a day forward": 86_400 - 60, "just too far": 301}


@pytest.mark.parametrize("off", OFF_S)
def test_a_clock_that_is_off_refuses_everything_and_is_logged_counted_and_told(
    off: str,
    open_door: Callable[[SetClock], Door],
    spool: Spool,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    off_s = OFF_S[off]
    now = datetime.now(UTC).replace(microsecond=0)  # `status` reads the clock of this machine
    door = open_door(SetClock(now + timedelta(seconds=off_s)))
    with caplog.at_level(logging.WARNING, "receiver"):
        assert [door.send(now) for _ in range(3)] == [401] * 3
    door.close()
    assert spool.ready_segments() == []
    told = [record.message for record in caplog.records if "reason='stale'" in record.message]
    assert len(told) == 3
    assert all(f"signed {off_s} s ago" in message for message in told)

    counts = read_counts(spool)
    assert (counts.refused, counts.clock_skew_s) == ({"stale": 3}, off_s)
    code, facts = status(capsys)
    assert (code, facts["door"]["clock_skew_s"]) == (ExitCode.NEEDS_ATTENTION, off_s)
    when = f"{off_s:,} s ago" if off_s > 0 else f"{-off_s:,} s in the future"
    assert facts["alarms"] == [
        f"deliveries are refused as signed {when}: this machine's clock is probably wrong; "
        "check that it is synchronised (NTP)"
    ]


@pytest.mark.parametrize("back", [timedelta(hours=1), timedelta(days=30)])
def test_a_clock_that_goes_back_after_an_acceptance_rings_at_once(
    back: timedelta,
    open_door: Callable[[SetClock], Door],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What was accepted at a later hour must not hide that everything is refused now."""
    now = datetime.now(UTC).replace(microsecond=0)
    clock = SetClock(now + back)
    door = open_door(clock)
    assert door.send(clock.time) == 200
    clock.time = now
    assert [door.send(now + back) for _ in range(3)] == [401] * 3
    door.close()
    code, facts = status(capsys)
    skew_s = int(back.total_seconds())
    assert (code, facts["alarms"]) == (
        ExitCode.NEEDS_ATTENTION,
        [
            f"deliveries are refused as signed {skew_s:,} s in the future: this machine's clock is "
            "probably wrong; check that it is synchronised (NTP)"
        ],
    )


@pytest.mark.parametrize("back", [timedelta(hours=1), timedelta(days=30)])
def test_what_another_process_accepted_before_the_clock_went_back_hides_nothing(
    back: timedelta, spool: Spool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of two processes, or of one that was started anew, none knows what the other has stamped."""
    now = datetime.now(UTC).replace(microsecond=0)
    before = ProcessCounts(spool, SetClock(now + back))
    before.add_accepted("0:base64")
    before.close()
    after = ProcessCounts(spool, SetClock(now))
    for _ in range(3):
        after.add_refused("stale", clock_skew_s=-int(back.total_seconds()))
    after.add_refused("wrong_signature")
    after.close()
    code, facts = status(capsys, "--max-age", "1d")
    dated = format_instant(now + back)[:19]
    assert code == ExitCode.NEEDS_ATTENTION
    assert facts["alarms"] == [
        f"an acceptance is dated {dated}Z, in the future: this machine's clock went back, and "
        "until then nobody can tell what came last; check that it is synchronised (NTP), and then "
        "delete the file in the spool's counts/ that holds this date",
        "every signed delivery is refused since the clock went back: the secret is probably wrong; "
        "compare receiver.webhook_secret with the endpoint's secret in the Midbound console",
        f"deliveries are refused as signed {int(back.total_seconds()):,} s in the future: this "
        "machine's clock is probably wrong; check that it is synchronised (NTP)",
        "nothing was accepted since the clock went back: check that the receiver runs, and that "
        "Midbound still sends to its address",
    ]
    # What the first alarm advises brings back the truth.
    (dated_file,) = (path for path in spool.counts.iterdir() if dated in path.read_text())
    dated_file.unlink()
    assert read_counts(spool).last_accepted_at is None


@pytest.mark.parametrize("off", [timedelta(hours=-1), timedelta(days=1)])
def test_the_alarm_ends_with_the_first_acceptance_after_the_clock_is_mended(
    off: timedelta,
    open_door: Callable[[SetClock], Door],
    capsys: pytest.CaptureFixture[str],
) -> None:
    now = datetime.now(UTC).replace(microsecond=0)
    clock = SetClock(now + off)
    door = open_door(clock)
    assert [door.send(now) for _ in range(3)] == [401] * 3
    clock.time = now
    assert door.send(now) == 200
    door.close()
    assert status(capsys)[1]["alarms"] == []


@pytest.mark.parametrize("jump", JUMPS)
def test_each_delivery_that_fits_the_clock_is_kept_in_order_across_a_jump(
    jump: str, open_door: Callable[[SetClock], Door], spool: Spool
) -> None:
    clock = SetClock()
    door = open_door(clock)
    assert door.send(START) == 200
    clock.time = JUMPS[jump]
    assert door.send(clock.time) == 200
    door.close()
    clock.time = START
    again = open_door(clock)
    again._count = 2
    assert again.send(START) == 200
    again.close()
    assert ids_in_order(spool) == ["evt_001", "evt_002", "evt_003"]
