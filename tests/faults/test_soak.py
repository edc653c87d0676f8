"""Sender, receiver and loader together, with processes killed at random, for as long as one likes.

The sender does as the vendor does: what was not answered 200 is sent again under the same id. Its
own log of what was answered 200 is the oracle. `TORTURE_SOAK_EVENTS` and `TORTURE_SOAK_KILLS`
set the size; 72 hours at 10 events a second are 2,600,000 events.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import PATH, TIMEOUT_S, Server, sign, wait_until
from sizes import size
from spools import Place

from pipelines.exit_codes import ExitCode

EVENTS = size("SOAK_EVENTS", usual=50_000, torture=2_600_000)
KILLS = size("SOAK_KILLS", usual=20, torture=500)
SEED = random.SystemRandom().randrange(2**32)
ROOT = Path(__file__).parents[2]
CONNECTIONS = 16
# Between two loads: how often a scheduler would be eager enough.
LOAD_PAUSE_S = 2.0
MOST_PAGES = 4
# A slow machine may take half of this; a system that hangs would take for ever.
DEADLINE_S = 300 + EVENTS / 50 + KILLS * 20
WELL = {ExitCode.DONE, ExitCode.NOTHING_TO_DO}


def page_count(number: int) -> int:
    """Say how many rows an event has in the child table."""
    return number % MOST_PAGES


def make_body(number: int) -> bytes:
    """Make an event of about 1 KB."""
    pages = [
        {"signal": "pageview", "url": f"https://www.example.com/{number}/{page}", "ts": 1739571906}
        for page in range(page_count(number))
    ]
    session = {"sid": f"session_{number}", "vid": f"visitor_{number % 100}", "events": pages}
    session["landingTitle"] = "x" * (700 - 90 * len(pages))
    event = {"id": f"evt_{number}", "type": "identity.session.finalized"}
    return json.dumps(event | {"data": {"session": session}}).encode()


# The receiver


class Receiver:
    """A receiver that its supervisor starts again, on another port, as soon as it has ended."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._is_over = threading.Event()
        self.start_count = 0
        self.current = self._start()
        self._thread = threading.Thread(target=self._supervise, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._is_over.set()
        self._thread.join(2 * TIMEOUT_S)
        assert not self._thread.is_alive()
        self.current.stop()

    def kill_one(self, chance: random.Random) -> None:
        with contextlib.suppress(IndexError, FileNotFoundError, ProcessLookupError):
            os.kill(chance.choice(self.current.workers()), signal.SIGKILL)

    def kill_all(self) -> None:
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):
            self.current.kill()

    def _start(self) -> Server:
        self.start_count += 1
        return Server(self._root, RECEIVER__WORKERS="2", SPOOL__SEGMENT_MAX_AGE_S="1")

    def _supervise(self) -> None:
        while not self._is_over.wait(0.05):
            if self.current.process.poll() is not None:
                self.current = self._start()


# The sender


class Connection:
    """A kept connection; http.client would take most of the time of a soak."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S)
        self._answers = self._socket.makefile("rb")

    def post(self, webhook_id: str, body: bytes) -> str:
        """Send a delivery; give the status. Raises OSError or EOFError without an answer."""
        headers = sign(body, webhook_id) | {"host": "x", "content-length": str(len(body))}
        lines = [f"{name}: {value}" for name, value in headers.items()]
        head = "\r\n".join([f"POST {PATH} HTTP/1.1", *lines, "", ""])
        self._socket.sendall(head.encode() + body)
        status = self._answers.readline()
        size_bytes = 0
        while (line := self._answers.readline().lower()) not in {b"\r\n", b""}:
            if line.startswith(b"content-length:"):
                size_bytes = int(line.partition(b":")[2])
        if line == b"" or len(self._answers.read(size_bytes)) < size_bytes:
            raise EOFError
        return status.split()[1].decode()

    def close(self) -> None:
        self._answers.close()
        self._socket.close()


class PersistentSender:
    """Sends each event until it is answered 200; keeps the answers."""

    def __init__(self, receiver: Receiver) -> None:
        self.acknowledged: set[int] = set()
        self.answers: Counter[str] = Counter()
        self._receiver = receiver
        self._numbers = iter(range(EVENTS))
        self._lock = threading.Lock()
        self._until_s = time.monotonic() + DEADLINE_S
        self._threads = [
            threading.Thread(target=self._run, daemon=True) for _ in range(CONNECTIONS)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def is_late(self) -> bool:
        return time.monotonic() > self._until_s

    @property
    def is_done(self) -> bool:
        return not any(thread.is_alive() for thread in self._threads)

    def _run(self) -> None:
        connection: Connection | None = None
        while (number := self._take()) is not None:
            body = make_body(number)
            while not self.is_late:
                try:
                    connection = connection or Connection(self._receiver.current.port)
                    answer = connection.post(f"evt_{number}", body)
                except (OSError, EOFError):
                    answer = "none"
                self._note(number, answer)
                if answer == "200":
                    break
                if connection is not None:
                    connection.close()
                    connection = None
                time.sleep(0.02)
        if connection is not None:
            connection.close()

    def _take(self) -> int | None:
        with self._lock:
            return next(self._numbers, None)

    def _note(self, number: int, answer: str) -> None:
        with self._lock:
            self.answers[answer] += 1
            if answer == "200":
                self.acknowledged.add(number)


# The loader


class Loader:
    """`midbound load` again and again, as a scheduler would."""

    def __init__(self, root: Path) -> None:
        self.codes: Counter[int] = Counter()
        self._root = root
        self._log = root / "load.log"
        self._is_over = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def load(self) -> int:
        environ = os.environ | {"PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "pipelines.cli", "load"]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command, cwd=self._root, env=environ, stdout=log, stderr=log
            )
        code = self._process.wait(DEADLINE_S)
        self.codes[code] += 1
        return code

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()

    def stop(self) -> None:
        self._is_over.set()
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()

    def log(self) -> str:
        return self._log.read_text()[-3000:]

    def _run(self) -> None:
        while not self._is_over.wait(LOAD_PAUSE_S):
            self.load()


@contextlib.contextmanager
def running_all(root: Path) -> Iterator[tuple[Receiver, PersistentSender, Loader]]:
    receiver = Receiver(root)
    loader = Loader(root)
    try:
        wait_until(lambda: receiver.current.port, "a port")
        receiver.current.wait_until_up()
        yield receiver, PersistentSender(receiver), loader
    finally:
        loader.stop()
        receiver.stop()


def kill_at_random(receiver: Receiver, sender: PersistentSender, loader: Loader) -> Counter[str]:
    """Kill one thing after the other while the sender sends; give how often which."""
    chance = random.Random(SEED)
    deeds = {
        "a worker": lambda: receiver.kill_one(chance),
        "the receiver": receiver.kill_all,
        "the load": loader.kill,
        "all": lambda: (receiver.kill_all(), loader.kill()),
    }
    killed: Counter[str] = Counter()
    for number in range(KILLS):
        # Spread over the whole run, and not in step with anything.
        wanted = EVENTS * (number + chance.random()) / KILLS
        while len(sender.acknowledged) < wanted and not sender.is_done:
            time.sleep(0.01)
        what = chance.choice(list(deeds))
        deeds[what]()
        killed[what] += 1
    while not sender.is_done:
        assert not sender.is_late, sender.answers
        time.sleep(0.05)
    return killed


# What has to be there


def check_warehouse(place: Place, acknowledged: set[int]) -> str:
    """Compare the warehouse with the answers; give the figures."""
    ids = Counter(event_id for (event_id,) in place.query("SELECT event_id FROM events"))
    wanted = {f"evt_{number}" for number in acknowledged}
    lost, doubled = wanted - ids.keys(), [event_id for event_id in ids if ids[event_id] > 1]
    assert (len(lost), len(doubled), len(ids.keys() - wanted)) == (0, 0, 0)
    pages = dict(place.query("SELECT event_id, count(*) FROM page_events GROUP BY 1"))
    assert pages == {f"evt_{n}": page_count(n) for n in acknowledged if page_count(n)}
    outcomes = dict(place.query("SELECT outcome, count(*) FROM deliveries GROUP BY 1"))
    assert outcomes.pop("loaded") == len(wanted)
    assert outcomes.keys() <= {"repeat"}
    check_loads(place)
    return f"{len(lost)} lost, {len(doubled)} doubled, {outcomes.get('repeat', 0):,} repeats"


def check_loads(place: Place) -> None:
    """No load may be listed twice or half, and no row may belong to another."""
    listed = sorted(place.query("SELECT load_id, status FROM _dlt_loads"))
    told = sorted(place.query("SELECT load_id, status FROM loads"))
    assert len(set(listed)) == len(listed)
    assert [(load_id, "done") for load_id, status in listed if status == 0] == told
    assert len(told) == len(listed)
    with_rows = set()
    for table in place.tables():
        query = (
            f"SELECT count(*), count(*) FILTER (WHERE _dlt_load_id NOT IN "
            f'(SELECT load_id FROM _dlt_loads)) FROM "{table}"'
        )
        ((count, orphan_count),) = place.query(query)
        assert orphan_count == 0, table
        with_rows |= {table} if count else set()
    assert with_rows == {"events", "page_events", "deliveries", "loads"}


@pytest.mark.timeout(2 * DEADLINE_S)
def test_every_acknowledged_event_is_there_once_whatever_was_killed(tmp_path: Path) -> None:
    print(f"seed {SEED}")
    started_s = time.monotonic()
    with running_all(tmp_path) as (receiver, sender, loader):
        killed = kill_at_random(receiver, sender, loader)
        sent_s = time.monotonic() - started_s
    # The first takes what is left, the second finds nothing.
    assert loader.load() in WELL, loader.log()
    assert loader.load() == ExitCode.NOTHING_TO_DO, loader.log()
    print(f"{EVENTS:,} events sent in {sent_s:.0f} s, answers {dict(sender.answers)}")
    print(f"killed {dict(killed)}; {receiver.start_count} receivers, loads {dict(loader.codes)}")
    assert loader.codes.keys() <= {*WELL, -signal.SIGKILL}, loader.log()
    assert sender.acknowledged == set(range(EVENTS))
    figures = check_warehouse(Place(tmp_path), sender.acknowledged)
    print(f"{len(sender.acknowledged):,} acknowledged, {figures}")
