"""Whatever a power cut leaves of what was not synced, every acknowledged line is there, once.

Hypothesis drives two receivers and a loader on a file system in memory (`model_disk`): they append,
seal by size, age and exit, fail, die, recover, load, and get in each other's way. After each single
call to the disk, several of the states that a power cut might leave are brought up and recovered,
some of these recoveries are cut in turn, and each state is held against the log of what was
acknowledged.

Real code: `Rotation`, `OpenSegment`, `recover`, `quarantine`, `mark_loaded`. Left out: the queue
and the thread of `Writer` around `Rotation.append`, and listing a directory while it changes.

`TORTURE_CRASH_STATES` sets how many states are tried.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    rule,
    run_state_machine_as_test,
)
from model_disk import File, KilledError, Machine, ModelDisk, ModelSpool
from sizes import LIMIT_S, size

from receiver.clock import Clock
from receiver.config import SpoolSettings
from receiver.record import Delivery, decode_line, segment_seed
from receiver.recovery import recover
from receiver.rotation import Rotation
from receiver.scan import scan_segment
from receiver.segment import mark_loaded, segment_name

STATE_COUNT = size("CRASH_STATES", usual=100_000, torture=1_000_000)
FIRST_SEED = size("CRASH_SEED", usual=1, torture=1)
EXAMPLES_PER_ROUND = 200
STATES_PER_STEP = 2
CUT_RECOVERIES = 0.1  # of the states, so many have their recovery cut, too
SETTINGS = SpoolSettings(min_free_bytes=0, segment_max_bytes=4000, segment_max_age_s=10)

WHO = st.sampled_from([0, 1])
BATCHES = st.lists(st.lists(st.integers(2, 1500), min_size=1, max_size=4), min_size=1, max_size=3)
CALLS = st.integers(0, 8)
# After so many calls to the disk, one fails, or the process dies in it.
FAULTS = st.one_of(st.none(), st.tuples(CALLS, st.booleans()))
Fault = tuple[int, bool] | None


class SetClock(Clock):
    """Goes on by itself, so that names differ, and by leaps when it is told to."""

    def __init__(self) -> None:
        self.elapsed_s = 0.0

    def now(self) -> datetime:
        self.elapsed_s += 0.001
        return datetime(2026, 11, 23, tzinfo=UTC) + timedelta(seconds=self.elapsed_s)

    def monotonic_s(self) -> float:
        return self.elapsed_s


@dataclass
class Tally:
    """What a run has tried."""

    states: int = 0
    cut_recoveries: int = 0
    histories: int = 0
    acknowledged: int = 0
    lines_checked: int = 0
    failed_calls: int = 0
    deaths: int = 0


@dataclass(frozen=True)
class Found:
    """What one segment holds: the ids of its good lines, and its damages' bytes by offset."""

    ids: tuple[str, ...]
    damages: tuple[tuple[int, bytes], ...]
    is_sealed: bool


class Receiver:
    """One process that writes."""

    def __init__(self, machine: Machine, clock: Clock) -> None:
        self.disk = ModelDisk(machine)
        self.rotation = Rotation(ModelSpool(machine), SETTINGS, self.disk, clock)


class SpoolModel(RuleBasedStateMachine):
    """The history of one spool, and the log of what was acknowledged in it."""

    def __init__(self, tally: Tally) -> None:
        super().__init__()
        self.tally = tally
        self.tally.histories += 1
        self.chance = Random(0)
        self.clock = SetClock()
        self.sent: dict[str, Delivery] = {}
        self.send_counts: Counter[str] = Counter()
        self.acknowledged: set[str] = set()
        self.unanswered: list[Delivery] = []
        self.warehouse: set[str] = set()
        self.taken: set[str] = set()
        self._meddles_in: int | None = None
        self._tried: set[int] = set()
        self._found: dict[tuple[str, bytes, bool], Found] = {}
        self._start(Machine())

    def _start(self, machine: Machine) -> None:
        self.machine = machine
        machine.on_step = self._after_step
        self.receivers = [Receiver(machine, self.clock) for _ in range(2)]

    # --- what happens

    @initialize(number=st.integers(0, 2**32 - 1))
    def begin(self, number: int) -> None:
        self.chance = Random(number)

    @rule(who=WHO, batches=BATCHES, fault=FAULTS)
    def append(self, who: int, batches: list[list[int]], fault: Fault) -> None:
        with self._broken(who, fault):
            for sizes in batches:
                self._append(who, sizes)

    @rule(who=WHO, fault=FAULTS)
    def grow_old(self, who: int, fault: Fault) -> None:
        self.clock.elapsed_s += SETTINGS.segment_max_age_s
        with self._broken(who, fault):
            if self.receivers[who].rotation.is_due():
                self.receivers[who].rotation.seal()

    @rule(who=WHO, fault=FAULTS)
    def leave(self, who: int, fault: Fault) -> None:
        with self._broken(who, fault):
            self.receivers[who].rotation.seal()
        self._replace(who)

    @rule(who=WHO)
    def kill(self, who: int) -> None:
        self._replace(who)

    @rule(calls=CALLS)
    def meddle_soon(self, calls: int) -> None:
        """Let another process recover between two calls of whoever comes next."""
        self._meddles_in = calls

    @rule(fault=FAULTS)
    def load(self, fault: Fault) -> None:
        disk = ModelDisk(self.machine)
        if fault is not None:
            disk.break_in(fault[0], dies=fault[1])
        with contextlib.suppress(OSError, KilledError):
            self._load(disk)
        disk.die()

    @rule()
    def lose_power(self) -> None:
        self._start(self.machine.cut_power(self.chance))

    def teardown(self) -> None:
        for who in range(2):
            self._replace(who)
        for _ in range(2):  # a segment under two names takes two loads
            self._load(ModelDisk(self.machine))
        assert self.acknowledged <= self.warehouse <= self.sent.keys()

    # --- the processes

    @contextlib.contextmanager
    def _broken(self, who: int, fault: Fault) -> Iterator[None]:
        """Let a call of a receiver fail, or its process die and be started again."""
        disk = self.receivers[who].disk
        if fault is not None:
            disk.break_in(fault[0], dies=fault[1])
        try:
            yield
        except OSError:
            self.tally.failed_calls += 1
        except KilledError:
            self.tally.deaths += 1
            self._replace(who)
        finally:
            disk.heal()

    def _append(self, who: int, sizes: list[int]) -> None:
        """Send new deliveries, and again what had no answer; log what is acknowledged."""
        rotation = self.receivers[who].rotation
        batch = [self._new_delivery(size) for size in sizes] + self.unanswered
        self.unanswered = batch
        self.send_counts.update(delivery.webhook_id for delivery in batch)
        rotation.append(batch)
        self.acknowledged.update(delivery.webhook_id for delivery in batch)
        self.tally.acknowledged += len(batch)
        self.unanswered = []
        self._try_power_cuts()
        if rotation.is_due():
            rotation.seal()

    def _replace(self, who: int) -> None:
        self.receivers[who].disk.die()
        self.receivers[who] = Receiver(self.machine, self.clock)

    def _load(self, disk: ModelDisk) -> None:
        """Do what a run of the pipeline does to the spool."""
        spool = ModelSpool(self.machine)
        recover(spool, disk)
        paths = spool.ready_segments()
        for path in paths:
            self.warehouse.update(self._read(path, disk.read(path)).ids)
            self.taken.add(path.name)
        mark_loaded(paths, disk)

    def _new_delivery(self, size_bytes: int) -> Delivery:
        webhook_id = f"evt_{len(self.sent)}"
        self.sent[webhook_id] = Delivery(
            webhook_id=webhook_id,
            webhook_timestamp="1739571908",
            webhook_signature="v1,c2ln",
            received_at="2026-11-23T17:22:05.123456Z",
            body=b"7" * size_bytes,
        )
        return self.sent[webhook_id]

    # --- the power cuts

    def _after_step(self) -> None:
        if self._meddles_in is not None:
            self._meddles_in -= 1
            if self._meddles_in < 0:
                self._meddles_in = None
                recover(ModelSpool(self.machine), ModelDisk(self.machine))
        self._try_power_cuts()

    def _try_power_cuts(self) -> None:
        for _ in range(STATES_PER_STEP if self.tally.states < STATE_COUNT else 0):
            state = self.machine.cut_power(self.chance)
            if self._is_new(state):
                self._check(state, cuts_recovery=self.chance.random() < CUT_RECOVERIES)

    def _is_new(self, state: Machine) -> bool:
        """Say whether this state, with this log, was not tried yet in this history."""
        key = hash((frozenset(state.content().items()), len(self.acknowledged)))
        is_new = key not in self._tried
        self._tried.add(key)
        return is_new

    def _check(self, state: Machine, *, cuts_recovery: bool) -> None:
        self.tally.states += 1
        spool = ModelSpool(state)
        left = {path: state.names[str(path)].seen for path in spool.open_segments()}
        kept = {name: data for name, data in state.content().items() if name.endswith(".bin")}
        if cuts_recovery:
            state.on_step = lambda: self._check_cut_recovery(state)
        recover(spool, ModelDisk(state))
        state.on_step = lambda: None
        self._check_lines(spool, state.names)
        content = state.content()
        assert kept.items() <= content.items(), "something in quarantine is another"
        self._check_bad_bytes_are_kept(spool, content, left)
        recover(spool, ModelDisk(state))
        assert state.content() == content, "a second recovery changed something"
        after = state.cut_power(self.chance)
        assert after.content() == content, "a finished recovery was not durable"

    def _check_cut_recovery(self, state: Machine) -> None:
        again = state.cut_power(self.chance)
        if self._is_new(again):
            self.tally.cut_recoveries += 1
            self._check(again, cuts_recovery=False)

    def _check_lines(self, spool: ModelSpool, names: dict[str, File]) -> None:
        open_paths = spool.open_segments()
        # A rename between two names of one file does nothing; such a file may stay under both.
        assert all(
            names[str(path)] is names.get(f"{spool.ready}/{path.name}") for path in open_paths
        )
        counts: Counter[str] = Counter()
        counted: dict[str, File] = {}
        for path in [*spool.ready_segments(), *spool.loaded_segments()]:
            file = names[str(path)]
            if path.name in counted:
                assert file is counted[path.name], f"two segments are called {path.name}"
                continue
            counted[path.name] = file
            found = self._read(path, file.seen)
            assert found.is_sealed or file.had_failed_sync, f"{path} has no seal"
            counts.update(found.ids)
        assert {path.name for path in spool.loaded_segments()} <= self.taken
        self.tally.lines_checked += counts.total()
        lost = self.acknowledged - counts.keys()
        assert not lost, f"acknowledged and lost: {sorted(lost)}"
        doubled = [name for name, count in counts.items() if count > self.send_counts[name]]
        assert not doubled, f"more often there than sent: {doubled}"

    def _check_bad_bytes_are_kept(
        self, spool: ModelSpool, content: dict[str, bytes], left: dict[Path, bytes]
    ) -> None:
        for path, data in left.items():
            for offset, bad in self._read(path, data, is_open=True).damages:
                start = f"{spool.quarantine}/{segment_name(path)}-{offset:012d}"
                assert bad in [
                    data
                    for name, data in content.items()
                    if name.startswith(start) and name.endswith(".bin")
                ]

    def _read(self, path: Path, data: bytes, *, is_open: bool = False) -> Found:
        """Read a segment; each good line must be one that was sent."""
        key = (path.name, data, is_open)
        if key not in self._found:
            name = segment_name(path)
            content = scan_segment(name, data, is_open=is_open)
            ids = []
            for line in content.lines:
                text = data[line.start : line.end - 1] + b"\n"
                delivery = decode_line(text, seed=segment_seed(name)).delivery
                assert delivery == self.sent[delivery.webhook_id]
                ids.append(delivery.webhook_id)
            damages = tuple(
                (damage.offset, data[damage.offset : damage.end]) for damage in content.damages
            )
            self._found[key] = Found(tuple(ids), damages, content.is_sealed)
        return self._found[key]


@pytest.fixture
def _silence() -> Iterator[None]:
    """Recoveries log; so many of them would fill the memory."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def run_round(number: int, tally: Tally) -> None:
    def make() -> SpoolModel:
        return SpoolModel(tally)

    run_state_machine_as_test(
        seed(number)(make),
        settings=settings(
            max_examples=EXAMPLES_PER_ROUND,
            stateful_step_count=12,
            deadline=None,
            phases=[Phase.generate],  # to shrink takes longer than to read the steps
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.timeout(LIMIT_S)
@pytest.mark.usefixtures("_silence")
def test_no_power_cut_at_any_step_loses_halves_or_invents_a_line() -> None:
    tally = Tally()
    rounds = 0
    while tally.states < STATE_COUNT:
        run_round(FIRST_SEED + rounds, tally)
        rounds += 1
        assert tally.histories >= rounds
    print(
        f"{tally.states:,} crash states ({tally.cut_recoveries:,} of a cut recovery) in "
        f"{tally.histories:,} histories, seeds {FIRST_SEED} to {FIRST_SEED + rounds - 1}; "
        f"{tally.acknowledged:,} acknowledged, 0 lost; {tally.lines_checked:,} lines compared; "
        f"{tally.failed_calls:,} failed calls, {tally.deaths:,} deaths"
    )
