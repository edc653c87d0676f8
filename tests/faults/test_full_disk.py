"""A disk that is full, read-only or stuck: 503 with Retry-After, and 200 again without a restart.

The real server on a tmpfs of its own. What was acknowledged before, while and after is the
sender's own log. Needs root, or the tests are skipped.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import resource
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from needs import need_mounts
from serving import PATH, Sender, Server, recovered_ids, running, sign, wait_until

MIB = 1024 * 1024
TIMEOUT_S = 30
SENDER_GIVES_UP_S = 15.0
LINE_BYTES = 4000
REFUSALS = 50  # enough to see that it stays refused
FILES_LEFT = 10  # one that was full, one being written, and a few that took part of a batch
STUCK_CLIENTS = 100
STUCK_DISK = """
import pathlib, time
from receiver.disk import Disk
sync = Disk.fdatasync
def stuck(self, descriptor):
    while pathlib.Path("stuck").exists():
        time.sleep(0.01)
    sync(self, descriptor)
Disk.fdatasync = stuck
"""


class SmallDisk:
    """A tmpfs at the place of a spool."""

    def __init__(self, path: Path, options: str) -> None:
        path.mkdir()
        self.path = path
        run("mount", "-t", "tmpfs", "-o", f"mode=0700,{options}", "tmpfs", str(path))

    def remount(self, options: str) -> None:
        run("mount", "-o", f"remount,{options}", str(self.path))

    def free_bytes(self) -> int:
        status = os.statvfs(self.path)
        return status.f_bavail * status.f_frsize


def run(*command: str) -> None:
    done = subprocess.run(command, check=False, timeout=TIMEOUT_S, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"


@contextlib.contextmanager
def small_disk(root: Path, options: str) -> Iterator[SmallDisk]:
    need_mounts()
    disk = SmallDisk(root / "spool", options)
    try:
        yield disk
    finally:
        run("umount", str(disk.path))


@contextlib.contextmanager
def serving_from(
    tmp_path: Path, options: str, **settings: str
) -> Iterator[tuple[SmallDisk, Server]]:
    with (
        small_disk(tmp_path, options) as disk,
        running(tmp_path, RECEIVER__WORKERS="1", **settings) as server,
    ):
        server.wait_until_up()
        yield disk, server


def status_of(server: Server, path: str) -> int:
    with contextlib.closing(server.connect()) as connection:
        connection.request("GET", path)
        return connection.getresponse().status


def refuse_some(sender: Sender) -> None:
    """Wait until so many deliveries more are refused."""
    wanted = sender.answers["503"] + REFUSALS
    wait_until(lambda: sender.answers["503"] >= wanted, "refusals", TIMEOUT_S)


def end_and_compare(server: Server, sender: Sender, workers: list[int]) -> None:
    """Stop; all acknowledged is there, none twice, by the processes that were there before."""
    sender.end()
    assert set(sender.answers) == {"200", "503"}, sender.answers  # and each with its Retry-After
    assert server.workers() == workers
    assert server.stop() == 0
    found = recovered_ids(server.spool)
    lost = sender.acknowledged - set(found)
    refused_count = sender.answers["503"]
    print(f"{len(sender.acknowledged)} acknowledged, {refused_count} refused, {len(lost)} lost")
    assert not lost
    assert set(found.values()) == {1}


def heal_and_compare(server: Server, sender: Sender, workers: list[int]) -> None:
    sender.wait_for_more(100)
    assert status_of(server, "/readyz") == 200
    end_and_compare(server, sender, workers)


def test_a_disk_that_is_full_refuses_and_goes_on_when_it_is_larger(tmp_path: Path) -> None:
    with serving_from(tmp_path, "size=1m") as (disk, server):
        workers = server.workers()
        with Sender(server, size_bytes=LINE_BYTES) as sender:
            refuse_some(sender)
            assert len(sender.acknowledged) > 100
            assert disk.free_bytes() < 2 * LINE_BYTES
            assert status_of(server, "/readyz") == 503
            assert status_of(server, "/healthz") == 200
            # A refusal for which nothing was written leaves nothing.
            assert len(server.spool.open_segments()) <= FILES_LEFT
            disk.remount("size=16m")
            heal_and_compare(server, sender, workers)


def test_below_the_floor_it_refuses_early_and_leaves_the_space(tmp_path: Path) -> None:
    floor_bytes = 2 * MIB
    with serving_from(tmp_path, "size=4m", SPOOL__MIN_FREE_BYTES=str(floor_bytes)) as (
        disk,
        server,
    ):
        workers = server.workers()
        with Sender(server, size_bytes=LINE_BYTES) as sender:
            refuse_some(sender)
            # The last batch may go below it: one line of each client, and pages begun.
            assert disk.free_bytes() > floor_bytes - 20 * LINE_BYTES
            assert status_of(server, "/readyz") == 503
            assert status_of(server, "/healthz") == 200
            disk.remount("size=16m")
            heal_and_compare(server, sender, workers)
        assert "less space is left" in server.log()


def test_without_inodes_it_refuses_and_goes_on_when_there_are_more(tmp_path: Path) -> None:
    with serving_from(tmp_path, "nr_inodes=40", SPOOL__SEGMENT_MAX_BYTES="1") as (disk, server):
        workers = server.workers()
        with Sender(server, threads=2) as sender:
            refuse_some(sender)
            assert os.statvfs(disk.path).f_favail == 0
            assert len(sender.acknowledged) >= 20
            assert status_of(server, "/readyz") == 503
            disk.remount("nr_inodes=5000")
            heal_and_compare(server, sender, workers)


def test_a_disk_that_turns_read_only_refuses_and_goes_on_when_it_is_not(tmp_path: Path) -> None:
    # Sealed at once: a tmpfs with a file that is open for writing cannot turn read-only.
    with serving_from(tmp_path, "size=16m", SPOOL__SEGMENT_MAX_BYTES="1") as (disk, server):
        workers = server.workers()
        assert server.post(1) == (200, b"ok")
        wait_until(lambda: is_remounted(disk, "ro"), "the spool to be read-only")
        with Sender(server) as sender:
            refuse_some(sender)
            assert not sender.acknowledged
            assert status_of(server, "/readyz") == 503
            disk.remount("rw")
            heal_and_compare(server, sender, workers)


def is_remounted(disk: SmallDisk, options: str) -> bool:
    """Try to remount, which has to wait for files that are open for writing."""
    command = ["mount", "-o", f"remount,{options}", str(disk.path)]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


def test_without_descriptors_it_refuses_and_goes_on_when_there_are_more(tmp_path: Path) -> None:
    with running(tmp_path, RECEIVER__WORKERS="1", SPOOL__SEGMENT_MAX_BYTES="1") as server:
        server.wait_until_up()
        (worker,) = server.workers()
        with contextlib.closing(server.connect()) as connection:
            assert post(connection, "evt_1") == 200
            limits = resource.prlimit(worker, resource.RLIMIT_NOFILE)
            resource.prlimit(worker, resource.RLIMIT_NOFILE, (3, limits[1]))
            answers = [post(connection, f"evt_{number}") for number in range(2, 2 + REFUSALS)]
            resource.prlimit(worker, resource.RLIMIT_NOFILE, limits)
            assert set(answers) == {503}
            assert post(connection, "evt_last") == 200
        assert server.post(1000) == (200, b"ok")
        assert server.workers() == [worker]
        assert server.stop() == 0
    assert set(recovered_ids(server.spool)) == {"evt_1", "evt_last", "evt_1000"}
    print(f"{len(answers)} refused without a descriptor, 3 acknowledged, 0 lost")


def post(connection: http.client.HTTPConnection, webhook_id: str) -> int:
    """Post one delivery; a 503 has to say when to come again."""
    body = b"{}"
    connection.request("POST", PATH, body, sign(body, webhook_id))
    response = connection.getresponse()
    response.read()
    assert (response.status == 503) == (response.getheader("retry-after") is not None)
    return response.status


def test_a_disk_that_hangs_is_answered_503_before_the_sender_gives_up(tmp_path: Path) -> None:
    stuck = tmp_path / "stuck"
    with running(tmp_path, patch=STUCK_DISK, RECEIVER__WORKERS="1") as server:
        server.wait_until_up()
        assert server.post(0) == (200, b"ok")
        (worker,) = server.workers()
        before = memory_bytes(worker)
        stuck.touch()
        with ThreadPoolExecutor(STUCK_CLIENTS) as pool:
            answers = list(pool.map(lambda n: timed_post(server, n), range(1, 1 + STUCK_CLIENTS)))
        assert {status for status, _ in answers} == {503}
        slowest_s = max(took_s for _, took_s in answers)
        assert slowest_s < SENDER_GIVES_UP_S
        grown = memory_bytes(worker) - before
        assert grown < 32 * MIB
        stuck.unlink()
        wait_until(lambda: server.post(1000) == (200, b"ok"), "a 200 after the disk came back")
        assert server.workers() == [worker]
        assert server.stop() == 0
    assert {"evt_0", "evt_1000"} <= set(recovered_ids(server.spool))
    print(f"{len(answers)} refused within {slowest_s:.1f} s, {grown / MIB:.1f} MiB more memory")


def timed_post(server: Server, number: int) -> tuple[int, float]:
    began_at_s = time.monotonic()
    with contextlib.closing(server.connect(timeout_s=2 * SENDER_GIVES_UP_S)) as connection:
        status = post(connection, f"evt_{number}")
    return status, time.monotonic() - began_at_s


def memory_bytes(pid: int) -> int:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition("VmRSS:")[2].split()[0]) * 1024
