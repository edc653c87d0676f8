"""The receivers to be compared, each a command that serves until it is told to end.

All have two workers and answer `GET /healthz`; all but the empty route verify a signature and
have every line on disk before they answer.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from serving import SECRET, free_port

PEERS = Path(__file__).parent / "peers"
ROOT = Path(__file__).parent.parent.parent
WORKERS = 2
TIMEOUT_S = 20.0
# A byte for each sync, so that the lines a sync can be counted without slowing anything down.
COUNT_SYNCS = """
import os
from receiver.disk import Disk
counter = os.open("syncs", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
sync = Disk.fdatasync
def counted(self, descriptor):
    sync(self, descriptor)
    os.write(counter, b".")
Disk.fdatasync = counted
from receiver.config import read_settings
from receiver.server import serve
serve(read_settings())
"""

Command = Callable[[int], list[str]]


def _gunicorn(port: int) -> list[str]:
    return [
        sys.executable, "-m", "gunicorn", "--bind", f"127.0.0.1:{port}", "--chdir", ".",
        "--workers", str(WORKERS), "--log-level", "error", "flask_sync:app",
    ]  # fmt: skip


WAYS: dict[str, Command] = {
    "ours": lambda _: [sys.executable, "-m", "pipelines.cli", "receive"],
    "Flask, gunicorn sync": _gunicorn,
    "Express": lambda _: ["node", "express_sync.mjs"],
    "an empty route": lambda port: [
        sys.executable, str(PEERS / "empty_route.py"), str(port), str(WORKERS),
    ],
    "ours, its syncs counted": lambda _: [sys.executable, "-c", COUNT_SYNCS],
}  # fmt: skip


def missing_for(way: str) -> str | None:
    """Say what a way needs that is not here."""
    if way == "Express":
        for command in ("node", "npm"):
            if shutil.which(command) is None:
                return f"the command {command} is missing"
    return None


@contextlib.contextmanager
def serving(way: str, directory: Path) -> Iterator[int]:
    """Serve in an empty directory; give the port."""
    port = free_port()
    process = subprocess.Popen(
        WAYS[way](port),
        cwd=_prepare(way, directory),
        env=_environ(port),
        stdout=subprocess.DEVNULL,
        stderr=(directory / "errors").open("wb"),
        process_group=0,
    )
    try:
        wait_until_up(port, process)
        yield port
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(TIMEOUT_S)


def wait_until_up(port: int, process: subprocess.Popen[bytes]) -> None:
    """Return when the server has answered."""
    until_s = time.monotonic() + TIMEOUT_S
    while process.poll() is None and time.monotonic() < until_s:
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=1),
        ):
            return
        time.sleep(0.005)
    raise RuntimeError(f"the server on port {port} does not answer")


def _prepare(way: str, directory: Path) -> Path:
    shutil.rmtree(directory / "spool", ignore_errors=True)
    for path in directory.glob("events*.jsonl"):
        path.unlink()
    (directory / "syncs").unlink(missing_ok=True)
    if way == "Express" and not (directory / "node_modules").exists():
        for name in ("package.json", "express_sync.mjs"):
            shutil.copy(PEERS / name, directory)
        install = ["npm", "install", "--no-package-lock", "--no-audit", "--no-fund", "--silent"]
        subprocess.run(install, cwd=directory, check=True)
    return directory


def _environ(port: int) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "HOME": os.environ.get("HOME", "/"),
        "PYTHONPATH": f"{ROOT}:{PEERS}",
        "RECEIVER__WEBHOOK_SECRET": SECRET,
        "RECEIVER__PORT": str(port),
        "RECEIVER__WORKERS": str(WORKERS),
        "SPOOL__MIN_FREE_BYTES": "0",
    }
