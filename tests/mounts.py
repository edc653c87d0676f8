"""File systems that lose their power: ext4 and xfs in a loop file, cut by their shutdown ioctl.

The ioctl ends all writing at once and does not flush the log, so only what was synced, or had
happened to reach the device, is there after the next mount. It needs root and a loop device.
"""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from needs import need_commands, need_mounts

SHUTDOWN = 0x8004587D  # _IOR('X', 125, __u32): XFS_IOC_GOINGDOWN, EXT4_IOC_SHUTDOWN
NO_LOG_FLUSH = struct.pack("I", 2)
MIB = 1024 * 1024
# xfs makes none below 300 MB; the file is sparse.
IMAGE_BYTES = {"ext4": 64 * MIB, "xfs": 300 * MIB}
FORCE = {"ext4": "-F", "xfs": "-f"}
TIMEOUT_S = 60.0


class Mount:
    """A mounted file system, until `cut_power`; mounted again by `remount`."""

    def __init__(self, kind: str, device: str, path: Path) -> None:
        self.kind = kind
        self.path = path
        self._device = device
        self._is_on = False

    def cut_power(self) -> None:
        """Lose the power: from now on every call fails, and what was not synced is gone."""
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(descriptor, SHUTDOWN, NO_LOG_FLUSH)
        finally:
            os.close(descriptor)
        self._is_on = False

    def remount(self) -> None:
        """Mount what survived, after a cut if there was none. Nobody may hold a file in it."""
        if self._is_on:
            self.cut_power()
        run("umount", self.path)
        self.mount()

    def mount(self) -> None:
        run("mount", "-t", self.kind, self._device, self.path)
        self._is_on = True


@contextmanager
def mounted(kind: str, directory: Path) -> Iterator[Mount]:
    """Make a file system in a file in this directory and mount it; skips where that cannot be."""
    skip_without_tools(kind)
    image, path = directory / f"{kind}.img", directory / kind
    path.mkdir()
    with image.open("wb") as file:
        file.truncate(IMAGE_BYTES[kind])
    run(f"mkfs.{kind}", "-q", FORCE[kind], image)
    with loop_device(image) as device:
        mount = Mount(kind, device, path)
        try_first(mount.mount)
        try:
            yield mount
        finally:
            # Lazily: a test that failed may still hold a file.
            run("umount", "--lazy", path)
    image.unlink()


@contextmanager
def loop_device(image: Path) -> Iterator[str]:
    """Attach a file as a block device."""
    device = try_first(lambda: run("losetup", "--find", "--show", image))
    try:
        yield device
    finally:
        run("losetup", "--detach", device)


def skip_without_tools(kind: str) -> None:
    need_mounts()
    need_commands(f"mkfs.{kind}", "losetup")


def try_first(step):
    """Do what a container or a kernel may not allow; skip if it does not."""
    try:
        return step()
    except subprocess.CalledProcessError as error:
        pytest.skip(f"{' '.join(map(str, error.cmd))}: {error.stderr.strip()}")


def run(*command: str | Path) -> str:
    """Run a command; give what it printed."""
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=TIMEOUT_S)
    return done.stdout.strip()
