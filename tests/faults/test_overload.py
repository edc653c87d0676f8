"""Ten times more than it holds: refused at once with 503, no growth, and 200 again afterwards.

The disk is made slow or stuck, and the queue small, so that a few clients are too many.
`TORTURE_OVERLOAD_S` sets how long each overload lasts.
"""

from __future__ import annotations

import time
from pathlib import Path

from serving import Sender, Server, recovered_ids, running, wait_until
from sizes import size

OVERLOAD_S = size("OVERLOAD_S", usual=4, torture=300)
MIB = 1024 * 1024
QUEUE_COUNT = 32
QUEUE_BYTES = 4 * MIB
CLIENT_COUNT = 10 * QUEUE_COUNT
SYNC_S = 0.2
SMALL_QUEUE = f"""
import functools, pathlib, time
import receiver.spool
from receiver.disk import Disk
receiver.spool.WaitingQueue = functools.partial(
    receiver.spool.WaitingQueue, max_count={QUEUE_COUNT}, max_bytes={QUEUE_BYTES}
)
sync = Disk.fdatasync
"""
SLOW_DISK = f"""
def slow(self, descriptor):
    time.sleep({SYNC_S})
    sync(self, descriptor)
Disk.fdatasync = slow
"""
STUCK_DISK = """
def stuck(self, descriptor):
    while pathlib.Path("stuck").exists():
        time.sleep(0.01)
    sync(self, descriptor)
Disk.fdatasync = stuck
"""


def memory_bytes(server: Server) -> int:
    """Give what the processes of a receiver hold in memory."""
    texts = [Path(f"/proc/{pid}/status").read_text() for pid in server.workers()]
    return sum(int(text.partition("VmRSS:")[2].split()[0]) * 1024 for text in texts)


def watch_memory(server: Server) -> list[int]:
    """Measure for as long as the overload lasts."""
    until_s = time.monotonic() + OVERLOAD_S
    found = []
    while time.monotonic() < until_s:
        found.append(memory_bytes(server))
        time.sleep(0.05)
    return found


def report(sender: Sender, memory: list[int], before: int) -> None:
    print(
        f"answers {dict(sender.answers)}; memory {before / MIB:.0f} MiB before, "
        f"{max(memory) / MIB:.0f} at most, {memory[-1] / MIB:.0f} at the end"
    )


def check_that_nothing_is_lost(server: Server, sender: Sender) -> None:
    """Kill the receiver, so that only what is on disk counts."""
    server.kill()
    lost = sender.acknowledged - set(recovered_ids(server.spool))
    print(f"{len(sender.acknowledged)} acknowledged, {len(lost)} lost")
    assert not lost


def test_ten_times_too_many_clients_are_refused_at_once_and_the_others_served(
    tmp_path: Path,
) -> None:
    with running(tmp_path, patch=SMALL_QUEUE + SLOW_DISK, RECEIVER__WORKERS="1") as server:
        server.wait_until_up()
        began_at_s = time.monotonic()
        with Sender(server, threads=CLIENT_COUNT, size_bytes=4000, pause_s=0.3) as sender:
            sender.wait_for_more(1)
            before = memory_bytes(server)
            memory = watch_memory(server)
        report(sender, memory, before)
        assert set(sender.answers) == {"200", "503"}
        assert sender.answers["503"] > 0
        # A sync takes at most a full queue; more would mean a queue without a bound.
        sync_count = (time.monotonic() - began_at_s) / SYNC_S + 1
        assert len(sender.acknowledged) <= QUEUE_COUNT * sync_count
        assert max(memory) - before < 32 * MIB
        assert server.post() == (200, b"ok")
        check_that_nothing_is_lost(server, sender)


def test_a_stuck_disk_and_senders_that_give_up_fill_no_memory(tmp_path: Path) -> None:
    with running(
        tmp_path,
        patch=SMALL_QUEUE + STUCK_DISK,
        RECEIVER__WORKERS="1",
        RECEIVER__MAX_BODY_BYTES=str(MIB),
    ) as server:
        server.wait_until_up()
        with Sender(server, threads=20, size_bytes=200_000, timeout_s=0.5) as sender:
            sender.wait_for_more(200)
            before = memory_bytes(server)
            stuck = tmp_path / "stuck"
            stuck.touch()
            memory = watch_memory(server)
            report(sender, memory, before)
            assert sender.answers["none"] > 0
            assert sender.answers["503"] > 0
            stuck.unlink()
            sender.wait_for_more(200)
        assert set(sender.answers) <= {"200", "503", "none"}
        assert max(memory) - before < 32 * MIB
        wait_until(lambda: server.post() == (200, b"ok"), "a 200 after the overload")
        check_that_nothing_is_lost(server, sender)
