"""Processes that die, end, reload, fork, and share a spool: no acknowledged event is lost.

What a client was answered is the only oracle. `TORTURE_PROCESS_KILLS` sets how often each test
kills.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from serving import (
    OTHER_KEY,
    OTHER_SECRET,
    RAW_KEY,
    SECRET,
    Sender,
    Server,
    is_dead,
    recovered_ids,
    running,
    sealed_ids,
    wait_until,
)
from sizes import size

from receiver.recovery import recover
from receiver.segment import Spool

KILLS = size("PROCESS_KILLS", usual=4, torture=200)
SEED = random.SystemRandom().randrange(2**32)
# Granian lets old and new processes of a reload run side by side for 3.5 s; less is enough here.
FAST_RELOAD = (
    "import functools, receiver.server as served;"
    "served.Granian = functools.partial(served.Granian, respawn_interval=1.0)"
)
SHORT_DEADLINES = "import receiver.server as served; served.HEADER_TIMEOUT_MS = 1000"
SLOW_DISK = """
import time
from receiver.disk import Disk
sync = Disk.fdatasync
def slow(self, descriptor):
    time.sleep(0.3)
    sync(self, descriptor)
Disk.fdatasync = slow
"""


@pytest.fixture
def chance() -> random.Random:
    print(f"seed {SEED}")
    return random.Random(SEED)


def owner(path_or_name: Path | str) -> int:
    """Give the process that a segment's name tells."""
    return int(re.search(r"Z-(\d+)-", str(path_or_name))[1])


def report(what: str, sender: Sender, stored: Counter[str]) -> None:
    lost = sender.acknowledged - set(stored)
    print(
        f"{what}: {len(sender.acknowledged)} acknowledged, {len(lost)} lost; "
        f"answers {dict(sender.answers)}"
    )
    assert sender.acknowledged, "nothing was acknowledged, so nothing was proven"
    assert not lost
    assert max(stored.values()) == 1, "a delivery that was sent once is there twice"


def kill_worker(server: Server, victim: int) -> None:
    """Kill one process, and wait until another has taken its place and sealed what it left."""
    count = len(server.workers())
    os.kill(victim, signal.SIGKILL)
    wait_until(
        lambda: len(server.workers()) == count and victim not in server.workers(), "a new process"
    )
    wait_until(
        lambda: victim not in map(owner, server.spool.open_segments()), "the seal of an orphan"
    )


def test_killed_workers_lose_nothing_and_their_orphans_are_sealed_by_the_next(
    tmp_path: Path, chance: random.Random
) -> None:
    with running(tmp_path, RECEIVER__WORKERS="3") as server:
        server.wait_until_up()
        with Sender(server) as sender:
            last = None
            for _ in range(KILLS):
                sender.wait_for_more(50)
                # Granian gives up if the process that it has just started ends again.
                newest = max(server.workers(), key=started_at)
                victim = chance.choice([pid for pid in server.workers() if pid != newest])
                kill_worker(server, victim)
                last = victim
            sender.wait_for_more(50)
        assert last is not None
        assert server.stop() == 0
        report(f"{KILLS} workers killed", sender, sealed_ids(server.spool))


def test_processes_that_die_at_once_end_the_receiver_sealed_for_its_supervisor(
    tmp_path: Path,
) -> None:
    with running(tmp_path) as server:
        server.wait_until_up()
        with Sender(server) as sender:
            sender.wait_for_more(50)
            newest = server.workers()[0]
            for _ in range(5):  # within 5.5 s Granian calls the second a loop
                os.kill(newest, signal.SIGKILL)
                wait_until(
                    lambda old=newest: has_replaced(server, old), "a new process, or the end"
                )
                if server.process.poll() is not None:
                    break
                newest = max(server.workers(), key=started_at)
            assert server.process.wait(30) == 1
        report("processes that die in a loop", sender, recovered_ids(server.spool))


def has_replaced(server: Server, old: int) -> bool:
    """Say whether a receiver has ended, or has two processes without the old one."""
    if server.process.poll() is not None:
        return True
    return len(server.workers()) == 2 and old not in server.workers()


def started_at(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[19])


def test_a_receiver_killed_whole_loses_nothing(tmp_path: Path, chance: random.Random) -> None:
    server = Server(tmp_path)
    try:
        server.wait_until_up()
        with Sender(server) as sender:
            for _ in range(KILLS):
                sender.wait_for_more(chance.randrange(1, 100))
                server.kill()
                server = Server(tmp_path)
                server.wait_until_up()
                sender.move_to(server)
            sender.wait_for_more(10)
            server.kill()
        report(f"{KILLS + 1} receivers killed", sender, recovered_ids(server.spool))
    finally:
        if server.process.poll() is None:
            server.kill()


@pytest.mark.parametrize("patch", ["", SLOW_DISK], ids=["a fast disk", "a slow disk"])
def test_a_receiver_told_to_end_finishes_what_it_has_accepted_and_seals(
    tmp_path: Path, patch: str
) -> None:
    for number in range(2):
        with running(tmp_path, patch=patch) as server:
            server.wait_until_up()
            with Sender(server, name=f"evt_{number}") as sender:
                sender.wait_for_more(20)
                assert server.stop() == 0
            assert server.spool.open_segments() == []
            report("told to end under load", sender, sealed_ids(server.spool))
            assert set(sender.answers) <= {"200", "503", "none"}


def test_a_stop_does_not_wait_for_clients_that_say_nothing(tmp_path: Path) -> None:
    with running(tmp_path, patch=SHORT_DEADLINES, RECEIVER__BODY_TIMEOUT_S="1") as server:
        server.wait_until_up()
        assert server.post() == (200, b"ok")
        silent = [server.open_socket(data) for data in (b"", b"POST", b"GET / HTTP/1.1\r\n") * 5]
        began_at_s = time.monotonic()
        assert server.stop() == 0
        print(
            f"ended after {time.monotonic() - began_at_s:.1f} s with {len(silent)} silent clients"
        )
        for connection in silent:
            connection.close()
        assert sealed_ids(server.spool) == {"evt_1": 1}


@contextmanager
def with_secrets(root: Path, *secrets: str) -> Iterator[Server]:
    """Run a receiver whose secrets are in its file, so that they can change."""
    write_secrets(root, *secrets)
    with running(root, patch=FAST_RELOAD, RECEIVER__WEBHOOK_SECRET=None) as server:
        server.wait_until_up()
        yield server


def write_secrets(root: Path, *secrets: str) -> None:
    path = root / ".dlt" / "secrets.toml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"[receiver]\nwebhook_secret = {list(secrets)}\n")


def reload(server: Server) -> None:
    """Reload, and wait until no old process serves."""
    old = server.workers()
    server.process.send_signal(signal.SIGHUP)
    wait_until(lambda: all(is_dead(worker) for worker in old), "the end of the old processes")


def test_a_reload_under_load_rotates_secrets_and_refuses_nothing(tmp_path: Path) -> None:
    with with_secrets(tmp_path, SECRET) as server, Sender(server, name="load") as sender:
        sender.wait_for_more(20)
        assert server.post(key=OTHER_KEY)[0] == 401
        write_secrets(tmp_path, OTHER_SECRET, SECRET)
        reload(server)
        assert server.post(1, key=OTHER_KEY) == (200, b"ok")
        assert server.post(2, key=RAW_KEY) == (200, b"ok")
        sender.wait_for_more(20)
        sender.end()
        write_secrets(tmp_path, OTHER_SECRET)
        reload(server)
        assert server.post(3, key=OTHER_KEY) == (200, b"ok")
        assert server.post(4, key=RAW_KEY)[0] == 401
        assert server.stop() == 0
        stored = sealed_ids(server.spool)
        report("two reloads under load", sender, stored)
        assert {"evt_1", "evt_2", "evt_3"} <= set(stored)
        assert set(sender.answers) <= {"200", "none"}


def test_a_reload_of_a_broken_configuration_keeps_the_old_one(tmp_path: Path) -> None:
    with with_secrets(tmp_path, SECRET) as server:
        workers = server.workers()
        write_secrets(tmp_path, "whsec_not base64")
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "event=not_reloaded" in server.log(), "a line in the log")
        assert server.post() == (200, b"ok")
        assert server.workers() == workers
        assert (
            " level=ERROR event=not_reloaded error='receiver.webhook_secret is set to something, "
            "which is not a secret or a list of secrets, without quotes, brackets or white space "
            "inside; set it in .dlt/secrets.toml under [receiver], or in the environment as "
            "RECEIVER__WEBHOOK_SECRET'\n"
        ) in server.log()
        assert "not base64" not in server.log()


def test_two_receivers_share_a_spool_and_recovery_leaves_the_living_alone(tmp_path: Path) -> None:
    settings = {"SPOOL__SEGMENT_MAX_AGE_S": "0.3"}  # many files, so many chances to go wrong
    with (
        running(tmp_path, **settings) as one,
        running(tmp_path, **settings) as other,
        recovering(one.spool) as found,
    ):
        one.wait_until_up()
        other.wait_until_up()
        workers = [*one.workers(), *other.workers()]
        with Sender(one, other) as sender:
            wait_until(lambda: owners(one.spool) >= set(workers), "a file of each process")
            sender.wait_for_more(200)
            killed = one.workers()
            one.kill()
            sender.move_to(other)
            sender.wait_for_more(200)
            assert other.stop() == 0
        sealed_by_us = {owner(name) for name, line_count in found.items() if line_count}
        print(f"{sum(map(bool, found.values()))} segments recovered beside living writers")
        assert sealed_by_us <= set(killed)
        stored = recovered_ids(one.spool)
        assert owners(one.spool) == set(workers)
        report("two receivers, one killed", sender, stored)


def owners(spool: Spool) -> set[int]:
    return {owner(path) for path in [*spool.open_segments(), *spool.ready_segments()]}


@contextmanager
def recovering(spool: Spool) -> Iterator[dict[str, int]]:
    """Recover without a pause; give the line count of each segment that was found."""
    found: dict[str, int] = {}
    is_over = threading.Event()

    def run() -> None:
        while not is_over.wait(0.001):
            found.update((each.name, each.line_count) for each in recover(spool))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        is_over.set()
        thread.join()


# The application is made, and has written, before the process forks: gunicorn's --preload.
FORKED = f"""
import os, pathlib, signal, sys, threading, time
sys.path.insert(0, {str(Path(__file__).parent.parent)!r})
from receiver.app import INTAKE_KEY, create_app
from receiver.config import read_settings
from serving import BODY, PATH, sign

app = create_app(read_settings())

def post(webhook_id):
    answer = app.test_client().post(PATH, data=BODY, headers=sign(BODY, webhook_id))
    if answer.status_code == 200:
        # One write a line: several processes share this pipe.
        os.write(1, f"{{os.getpid()}} {{webhook_id}}\\n".encode())

def held():
    links = [os.readlink(entry) for entry in pathlib.Path("/proc/self/fd").iterdir()
             if entry.exists()]
    return [link for link in links if link.endswith(".jsonl")]

def serve(number):
    assert held() == [], held()
    assert threading.active_count() == 1
    for turn in range(5):
        post(f"evt_{{number}}_{{turn}}")
    assert len(held()) == 1
"""
FORKS = """
post("evt_first")
for number in range(4):
    if os.fork() == 0:
        status = 1
        try:
            serve(number)
            app.extensions[INTAKE_KEY].close()
            status = 0
        finally:
            os._exit(status)
statuses = [os.wait()[1] for _ in range(4)]
post("evt_last")
app.extensions[INTAKE_KEY].close()
sys.exit(any(statuses))
"""
PARENT_DIES = """
post("evt_first")
if os.fork() == 0:
    time.sleep(60)
    os._exit(0)
os.kill(os.getpid(), signal.SIGKILL)
"""


def run_forked(root: Path, script: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", FORKED + script],
        cwd=root,
        env={
            "PYTHONPATH": str(Path(__file__).parent.parent.parent),
            "RECEIVER__WEBHOOK_SECRET": SECRET,
            "SPOOL__MIN_FREE_BYTES": "0",
        },
        stdout=subprocess.PIPE,
        text=True,
        process_group=0,
    )


def test_a_fork_after_import_shares_no_file_and_no_thread(tmp_path: Path) -> None:
    with run_forked(tmp_path, FORKS) as process:
        answers = [line.split() for line in process.communicate(timeout=30)[0].splitlines()]
    assert process.returncode == 0
    acknowledged = {webhook_id: int(pid) for pid, webhook_id in answers}
    assert len(acknowledged) == 22
    spool = Spool(tmp_path / "spool")
    assert spool.open_segments() == []
    assert sealed_ids(spool) == Counter(acknowledged.keys())
    assert sorted(map(owner, spool.ready_segments())) == sorted(set(acknowledged.values()))
    counted = {int(path.name.split("-")[0]) for path in spool.counts.iterdir()}
    assert counted == set(acknowledged.values())
    print("22 acknowledged by 5 processes, a file each, 0 lost")


def test_a_child_that_lives_on_keeps_no_lock_of_its_dead_parent(tmp_path: Path) -> None:
    process = run_forked(tmp_path, PARENT_DIES)
    try:
        assert process.wait(30) == -signal.SIGKILL
        spool = Spool(tmp_path / "spool")
        assert len(spool.open_segments()) == 1
        # The child closes its copy as soon as it runs.
        wait_until(lambda: recover(spool), "the lock of a dead parent")
        assert sealed_ids(spool) == {"evt_first": 1}
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.stdout.close()
