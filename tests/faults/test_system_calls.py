"""Every system call of the acknowledging path fails once: no false 200, and no restart by hand.

`strace` is attached to the one thread that writes, so that every call of that thread on a file or
a descriptor is one of the spool, and k counts these alone. Each call fails at its first, second,
… occurrence, until the fault is not reached any more. The oracle is what the thread's process has
answered, kept here, outside of the traced process.

The usual run takes every occurrence with SIGKILL and, in the writer, with EIO; every third of a
call with the other errors. `TORTURE_ALL_SYSTEM_CALLS=1` takes all.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import os
import re
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from needs import need_commands
from serving import Server, is_dead, recovered_ids, running, wait_until
from sizes import LIMIT_S, size

from receiver.config import SpoolSettings
from receiver.record import Delivery
from receiver.segment import SUFFIX, Spool
from receiver.spool import Writer

IS_ALL = bool(size("ALL_SYSTEM_CALLS", usual=0, torture=1))
TIMEOUT_S = 30.0
CALL_LIMIT = 60  # of one kind in one run, far above the real number
SEGMENT_BYTES = 300  # two lines: a segment is begun, appended to, and sealed
TRIES = 3  # after a fault, so many deliveries at most until there is a 200 again
KILL = "signal=KILL"
ERRORS = ["error=EIO", "error=ENOSPC", "error=EDQUOT", "error=EINTR"]
# What a 200 rests on; the sweep has to have met each of these.
ACKNOWLEDGING = set("openat write fdatasync fsync rename close flock".split())
# Python calls these again by itself, as PEP 475 has it; so EINTR is not seen.
RETRIED = {"write", "fdatasync", "fsync", "flock"}
STATFS = {"statfs", "statfs64"}

WRITE = f"""
import _strptime, sys  # the import would else be among the calls of the thread
from receiver.config import SpoolSettings
from receiver.errors import DeliveryError
from receiver.record import Delivery
from receiver.segment import Spool
from receiver.spool import Writer

spool = Spool(sys.argv[1])
spool.create()
writer = Writer(spool, SpoolSettings(min_free_bytes=0, segment_max_bytes={SEGMENT_BYTES}))
writer._start_thread()
print(writer._thread.native_id, flush=True)
for line in sys.stdin:
    delivery = Delivery(
        webhook_id=line.strip(), webhook_timestamp="1795454525", webhook_signature="v1,c2lnbmVk",
        received_at="2026-11-23T17:22:05.123456Z", body=b"{{}}",
    )
    try:
        writer.submit(delivery).result()
        print(200, flush=True)
    except DeliveryError as error:
        print(error.status, flush=True)
writer.close()
"""
LEFT = {"evt_0", "evt_1"}  # acknowledged by processes that were killed
TORN = b'{"v":1,"n":1,"webhook_id":"evt_torn'
RECOVER = """
import sys, threading
from receiver.segment import Spool
from receiver.spool import recover

answers = ["failed"]  # open/ could not be listed
begun = threading.Event()
def run():  # in a thread of its own, so that no call on a pipe is traced
    begun.wait()
    try:
        recover(Spool(sys.argv[1]))
        answers.append("done")
    except OSError:
        pass
thread = threading.Thread(target=run)
thread.start()
print(thread.native_id, flush=True)
sys.stdin.readline()
begun.set()
thread.join()
print(answers[-1], flush=True)
"""
NOTE_THREAD = """
import pathlib, threading
from receiver.spool import Writer
run = Writer._run
def noted(self):
    pathlib.Path("writer").write_text(str(threading.get_native_id()))
    run(self)
Writer._run = noted
"""
UNLISTED_SPOOL = """
import errno, pathlib
from receiver import segment
list_names = segment.segment_file_names
def unlisted(directory):
    if pathlib.Path("unlisted").exists():
        raise OSError(errno.EIO, "cannot be listed")
    return list_names(directory)
segment.segment_file_names = unlisted
"""


@pytest.fixture(autouse=True)
def _skip_without_strace(tmp_path: Path) -> None:
    need_commands("strace")
    probe = ["strace", "-o", str(tmp_path / "probe"), "-e", "trace=none", "true"]
    if subprocess.run(probe, check=False, capture_output=True).returncode != 0:
        pytest.skip("strace may not trace a process here")


@pytest.fixture
def place() -> Iterator[Path]:
    """Give a directory in memory, where a sync takes no time; a kill loses nothing there either."""
    memory = Path("/dev/shm")  # noqa: S108 - a directory of its own is made in it
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        yield Path(name)


class Child:
    """A process that answers lines on its standard input; its first line names a thread."""

    def __init__(self, script: str, spool: Spool) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", script, str(spool.path)],
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).parents[2])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
        )
        self.thread_id = int(self.read())

    def ask(self, line: str) -> str:
        """Give the answer; none if the process is dead."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(line.encode() + b"\n")
        return self.read()

    def read(self) -> str:
        ready, _, _ = select.select([self.process.stdout], [], [], TIMEOUT_S)
        assert ready, "the process does not answer"
        return self.process.stdout.readline().decode().strip()

    def end(self) -> int:
        """Say that nothing more will come; wait for the end."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        return self.process.wait(TIMEOUT_S)


@contextlib.contextmanager
def living(script: str, spool: Spool) -> Iterator[Child]:
    child = Child(script, spool)
    try:
        yield child
    finally:
        if child.process.poll() is None:
            child.process.kill()
            child.process.wait(TIMEOUT_S)
        child.process.stdin.close()
        child.process.stdout.close()


@contextlib.contextmanager
def traced(thread_id: int, log: Path, *options: str) -> Iterator[None]:
    """Trace a thread's calls on files and descriptors; let go of it at the end."""
    strace = subprocess.Popen(
        ["strace", "-p", str(thread_id), "-o", str(log), "-e", "trace=%file,%desc", *options],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        attached = strace.stderr.readline()
        assert "attached" in attached, attached
        yield
    finally:
        strace.send_signal(signal.SIGINT)
        strace.wait(TIMEOUT_S)
        strace.stderr.close()


def inject(call: str, fault: str, k: int) -> list[str]:
    return ["-e", f"inject={call}:{fault}:when={k}"]


def calls_in(log: Path) -> Counter[str]:
    """Count the calls of a trace by name."""
    return Counter(re.findall(r"^(\w+)\(", log.read_text(), re.MULTILINE))


def was_reached(log: Path) -> bool:
    text = log.read_text()
    return "(INJECTED)" in text or "killed by SIGKILL" in text


def must_refuse(log: Path) -> bool | None:
    """Say whether the fault must cost a 200, or must not; None if it may or may not.

    The bytes that a failed sync has left behind are often there all the same, so that only the
    answer tells a false 200. A seal comes after all 200 of its segment.
    """
    before, injected, _ = log.read_text().partition("(INJECTED)")
    call = re.match(r"\w+", before.rpartition("\n")[2])
    if not injected or call is None or call[0] not in RETRIED:
        return None
    is_sealing = before.rfind(r"\"seal\"") > before.rfind("O_EXCL")
    return "EINTR" not in before.rpartition("\n")[2] and not is_sealing


class Tally:
    """What a sweep has met, to be told at its end."""

    def __init__(self) -> None:
        self.faults: Counter[str] = Counter()
        self.answers: Counter[str] = Counter()

    def report(self, what: str) -> None:
        calls = ", ".join(f"{call} {count}" for call, count in sorted(self.faults.items()))
        acknowledged = self.answers["200"]
        print(
            f"{what}: {self.faults.total()} faults ({calls}); {acknowledged} acknowledged, "
            f"{self.answers.total() - acknowledged} not, 0 lost"
        )


def check(spool: Spool, acknowledged: set[str], sent: set[str]) -> None:
    """Recover as the next start does: all acknowledged is there, once, and nothing is damaged."""
    found = recovered_ids(spool)
    lost = acknowledged - set(found)
    assert not lost, lost
    assert set(found) <= sent
    assert set(found.values()) <= {1}
    assert list(spool.quarantine.iterdir()) == []


def wants(fault: str, k: int, always: Sequence[str]) -> bool:
    return IS_ALL or fault in always or k % 3 == 1


def survey(place: Path) -> Counter[str]:
    """Count the calls of a life without a fault."""
    log = place / "survey.log"
    spool = Spool(place / "survey")
    with living(WRITE, spool) as child, traced(child.thread_id, log):
        assert [child.ask(f"evt_{number}") for number in range(3)] == ["200"] * 3
        assert child.end() == 0
    assert len(spool.ready_segments()) == 2
    # Whatever is written is synced before anything else is done.
    calls = re.findall(r"^(\w+)\(", log.read_text(), re.MULTILINE)
    followers = [after for call, after in itertools.pairwise(calls) if call == "write"]
    assert followers == ["fdatasync"] * 5  # three lines, two seals
    return calls_in(log)


def live_with_error(spool: Spool, log: Path, options: list[str], tally: Tally) -> None:
    """Send three deliveries, then more until there is a 200 again; end as after a SIGTERM."""
    with living(WRITE, spool) as child, traced(child.thread_id, log, *options):
        answers = {f"evt_{number}": child.ask(f"evt_{number}") for number in range(3)}
        for number in range(3, 3 + TRIES):
            answers[f"evt_{number}"] = child.ask(f"evt_{number}")
            if answers[f"evt_{number}"] == "200":
                break
        else:
            raise AssertionError(f"no 200 any more: {answers}")
        assert child.end() == 0
    assert set(answers.values()) <= {"200", "503"}
    refused_count = list(answers.values()).count("503")
    assert refused_count <= 1  # one fault costs one batch
    if must_refuse(log) is not None:
        assert refused_count == must_refuse(log)
    tally.answers.update(answers.values())
    check(spool, {name for name, status in answers.items() if status == "200"}, set(answers))


def live_until_killed(spool: Spool, log: Path, options: list[str], tally: Tally) -> None:
    """Send three deliveries, of which some get no answer; then let another writer go on."""
    with living(WRITE, spool) as child, traced(child.thread_id, log, *options):
        answers = {f"evt_{number}": child.ask(f"evt_{number}") for number in range(3)}
        child.end()
    assert set(answers.values()) <= {"200", ""}
    writer = Writer(spool, SpoolSettings(min_free_bytes=0))
    deliver(writer, "evt_3")
    writer.close()
    answers["evt_3"] = "200"
    tally.answers.update(answers.values())
    check(spool, {name for name, status in answers.items() if status == "200"}, set(answers))


@pytest.mark.parametrize("fault", [*ERRORS, KILL])
def test_each_call_of_the_writer_fails_once(place: Path, fault: str) -> None:
    live = live_until_killed if fault == KILL else live_with_error
    calls = survey(place)
    assert set(calls) >= ACKNOWLEDGING
    assert set(calls) & STATFS
    tally = Tally()
    for call in sorted(calls):
        for k in range(1, CALL_LIMIT):
            if not wants(fault, k, ["error=EIO", KILL]):
                continue
            spool = Spool(place / f"{call}-{k}")
            log = place / f"{call}-{k}.log"
            live(spool, log, inject(call, fault, k), tally)
            if not was_reached(log):
                break
            tally.faults[call] += 1
        else:
            raise AssertionError(f"{call} never ends")
    tally.report(fault)
    assert set(tally.faults) == set(calls)


def leave_behind(spool: Spool) -> None:
    """Leave what killed processes do: a torn end, a seal that was not moved, an empty file."""
    spool.create()
    for number, left in enumerate(("torn", "sealed", "empty")):
        writer = Writer(spool, SpoolSettings(min_free_bytes=0))
        deliver(writer, f"evt_{number}")
        path = spool.open_segments()[-1]
        if left == "sealed":
            writer.close()
            (spool.ready / path.name).rename(path)
            continue
        writer._rotation.abandon()
        writer.close()
        if left == "torn":
            with path.open("ab") as file:
                file.write(TORN)
        else:
            path.write_bytes(b"")


def deliver(writer: Writer, webhook_id: str) -> None:
    delivery = Delivery(
        webhook_id=webhook_id,
        webhook_timestamp="1795454525",
        webhook_signature="v1,c2lnbmVk",
        received_at="2026-11-23T17:22:05.123456Z",
        body=b"{}",
    )
    writer.submit(delivery).result(TIMEOUT_S)


def check_recovery(spool: Spool) -> None:
    assert recovered_ids(spool) == Counter(LEFT)
    assert [path.read_bytes() for path in spool.quarantine.glob("*.bin")] == [TORN]
    assert len(list(spool.quarantine.glob("*.json"))) == 1


def recover_with(spool: Spool, log: Path, *options: str) -> None:
    """Recover what was left in a traced process."""
    with living(RECOVER, spool) as child, traced(child.thread_id, log, *options):
        answer = child.ask("go")
        assert child.end() in (0, -signal.SIGKILL)
    is_killed = any(KILL in option for option in options)
    assert answer == "done" or ((is_killed or answer == "failed") and was_reached(log))


def recovery_calls(place: Path) -> Counter[str]:
    """Count the calls of a recovery without a fault."""
    log = place / "survey.log"
    spool = Spool(place / "survey")
    shutil.copytree(place / "left", spool.path)
    recover_with(spool, log)
    check_recovery(spool)
    return calls_in(log)


@pytest.mark.parametrize("fault", [*ERRORS, KILL])
def test_each_call_of_a_recovery_fails_once_and_the_next_one_ends_it(
    place: Path, fault: str
) -> None:
    leave_behind(Spool(place / "left"))
    calls = recovery_calls(place)
    assert set(calls) >= {*ACKNOWLEDGING, "ftruncate", "unlink"}
    tally = Tally()
    for call in sorted(calls):
        for k in range(1, CALL_LIMIT):
            if not wants(fault, k, [KILL]):
                continue
            spool = Spool(place / f"{call}-{k}")
            log = place / f"{call}-{k}.log"
            shutil.copytree(place / "left", spool.path)
            recover_with(spool, log, *inject(call, fault, k))
            check_recovery(spool)
            tally.answers["200"] += len(LEFT)
            if not was_reached(log):
                break
            tally.faults[call] += 1
        else:
            raise AssertionError(f"{call} never ends")
    tally.report(fault)


def post_until_acknowledged(server: Server, numbers: Iterator[int], tally: Tally) -> set[str]:
    """Post two deliveries at least, which fill a segment; give those that were acknowledged."""
    acknowledged = set()
    for tried, number in enumerate(itertools.islice(numbers, 2 + TRIES), 1):
        status, _ = server.post(number)
        assert status in (200, 503)
        tally.answers[str(status)] += 1
        if status == 200:
            acknowledged.add(f"evt_{number}")
        if status == 200 and tried >= 2:
            return acknowledged
    raise AssertionError("no 200 any more")


@pytest.mark.timeout(LIMIT_S)
def test_one_server_outlives_an_error_of_each_call(tmp_path: Path) -> None:
    log = tmp_path / "strace.log"
    tally = Tally()
    numbers = itertools.count(1)
    settings = {"RECEIVER__WORKERS": "1", "SPOOL__SEGMENT_MAX_BYTES": str(SEGMENT_BYTES)}
    with running(tmp_path, patch=NOTE_THREAD, **settings) as server:
        server.wait_until_up()
        acknowledged = post_until_acknowledged(server, numbers, tally)
        workers = server.workers()
        thread_id = int((tmp_path / "writer").read_text())
        with traced(thread_id, log):
            acknowledged |= post_until_acknowledged(server, numbers, tally)
            acknowledged |= post_until_acknowledged(server, numbers, tally)
        calls = calls_in(log)
        assert set(calls) >= ACKNOWLEDGING
        for call, fault in itertools.product(sorted(calls), ERRORS):
            for k in range(1, calls[call] + 1):
                if not wants(fault, k, ["error=EIO"]):
                    continue
                with traced(thread_id, log, *inject(call, fault, k)):
                    acknowledged |= post_until_acknowledged(server, numbers, tally)
                    acknowledged |= post_until_acknowledged(server, numbers, tally)
                tally.faults[call] += was_reached(log)
        assert server.workers() == workers
        assert server.stop() == 0
    found = recovered_ids(server.spool)
    assert acknowledged <= set(found)
    assert set(found.values()) == {1}
    assert all(tally.faults[call] for call in calls)
    tally.report("one server")


def post_until_dead(server: Server) -> set[str]:
    """Post until there is no answer, twice at most; give what was acknowledged."""
    acknowledged = set()
    with contextlib.suppress(OSError, http.client.HTTPException):
        for number in (2, 3):
            assert server.post(number) == (200, b"ok")
            acknowledged.add(f"evt_{number}")
    return acknowledged


@pytest.mark.parametrize("call", ["write", "fdatasync", "rename"])
def test_a_killed_process_of_the_server_is_replaced_and_nothing_is_lost(
    tmp_path: Path, call: str
) -> None:
    log = tmp_path / "strace.log"
    settings = {"RECEIVER__WORKERS": "1", "SPOOL__SEGMENT_MAX_BYTES": str(SEGMENT_BYTES)}
    with running(tmp_path, patch=NOTE_THREAD, **settings) as server:
        server.wait_until_up()
        assert server.post(1) == (200, b"ok")
        (worker,) = server.workers()
        thread_id = int((tmp_path / "writer").read_text())
        with traced(thread_id, log, *inject(call, KILL, 1)):
            acknowledged = {"evt_1"} | post_until_dead(server)
        wait_until(lambda: is_dead(worker), "the end of the killed process")
        server.wait_until_up()
        assert server.post(99) == (200, b"ok")
        assert server.stop() == 0
    assert acknowledged | {"evt_99"} <= set(recovered_ids(server.spool))
    print(f"killed at {call}: {len(acknowledged)} acknowledged before, 0 lost")


def test_a_server_that_cannot_list_its_spool_waits_for_the_disk(tmp_path: Path) -> None:
    unlisted = tmp_path / "unlisted"
    unlisted.touch()
    with running(tmp_path, patch=UNLISTED_SPOOL, RECEIVER__WORKERS="1") as server:
        server.wait_until_up()
        workers = server.workers()
        assert server.post(1)[0] == 503
        unlisted.unlink()
        assert server.post(2) == (200, b"ok")
        assert server.workers() == workers
        assert server.stop() == 0
    assert set(recovered_ids(server.spool)) == {"evt_2"}


@pytest.mark.parametrize("is_first", [True, False])
def test_a_write_that_is_really_cut_short_acknowledges_nothing(
    tmp_path: Path, is_first: bool
) -> None:
    spool = Spool(tmp_path / "spool")
    acknowledged, sent, torn_count = set(), itertools.count(), 0
    with living(WRITE, spool) as child:
        for cut in cuts_of_a_line():
            wanted = ["503", "200", "200"] if is_first else ["200", "503", "200", "200"]
            for status in wanted:
                webhook_id = f"evt_{next(sent):04}"
                if status == "503" and is_first:
                    wait_until(lambda: not held_segments(child), "the seal of the segment before")
                limit_file_size(child, cut if status == "503" else None)
                assert child.ask(webhook_id) == status, cut
                acknowledged |= {webhook_id} if status == "200" else set()
            torn_count += cut > 0
        assert child.end() == 0
    assert recovered_ids(spool) == Counter(acknowledged)
    assert len(list(spool.quarantine.glob("*.bin"))) == torn_count
    print(f"{torn_count} short writes, {len(acknowledged)} acknowledged, 0 lost")


def cuts_of_a_line() -> range:
    """Say after how many bytes of a line its write ends; the line is longer than any."""
    return range(0, 150, 1 if IS_ALL else 10)


def limit_file_size(child: Child, cut: int | None) -> None:
    """Let the process write `cut` bytes more into any file; None takes the limit away."""
    size_bytes = resource.RLIM_INFINITY
    if cut is not None:
        size_bytes = cut + max((path.stat().st_size for path in held_segments(child)), default=0)
    resource.prlimit(child.process.pid, resource.RLIMIT_FSIZE, (size_bytes, resource.RLIM_INFINITY))


def held_segments(child: Child) -> list[Path]:
    """List the segments that a process holds open."""
    held = []
    for link in Path(f"/proc/{child.process.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed in the meantime
            held.append(link.readlink())
    return [path for path in held if path.suffix == SUFFIX]
