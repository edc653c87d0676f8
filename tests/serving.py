"""The real server as a process on a free port, and clients that believe only its answers.

What a `Sender` has logged as answered 200 is the oracle: it is kept in the process of the test,
outside the system, and is compared with what the spool holds afterwards.
"""

from __future__ import annotations

import base64
import contextlib
import hmac
import http.client
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from receiver.record import Delivery, decode_line, segment_seed
from receiver.recovery import recover
from receiver.segment import Spool, read_segment

PATH = "/webhooks/midbound"
RAW_KEY = bytes(range(24))
SECRET = "whsec_" + base64.b64encode(RAW_KEY).decode()
OTHER_KEY = bytes(range(24, 48))
OTHER_SECRET = "whsec_" + base64.b64encode(OTHER_KEY).decode()
BODY = b'{"id":"evt_1","type":"identity.resolved"}'
LIMIT_BYTES = 5000
TIMEOUT_S = 15.0
REQUESTS_PER_CONNECTION = 10
START = (
    "from receiver.config import read_settings; from receiver.server import serve;"
    "serve(read_settings())"
)


class Server:
    """One receiver: its process, its port, its spool and its log.

    `patch` is Python that runs in the process before it serves, to make a disk slow, say. A
    setting of None takes its default away.
    """

    def __init__(self, root: Path, *, patch: str = "", **settings: str | None) -> None:
        self.root = root
        self.spool = Spool(root / "spool")
        self.port = free_port()
        self.log_path = root / f"log-{self.port}"
        environ = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(Path(__file__).parent.parent),
            "RECEIVER__WEBHOOK_SECRET": SECRET,
            "RECEIVER__PORT": str(self.port),
            "RECEIVER__MAX_BODY_BYTES": str(LIMIT_BYTES),
            "SPOOL__MIN_FREE_BYTES": "0",
        } | settings
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", f"{patch}\n{START}"],
                cwd=root,
                env={name: value for name, value in environ.items() if value is not None},
                stdout=log,
                stderr=log,
                process_group=0,
            )

    def wait_until_up(self, context: ssl.SSLContext | None = None) -> None:
        until_s = time.monotonic() + TIMEOUT_S
        while True:
            with contextlib.suppress(OSError, http.client.HTTPException):
                connection = self.connect(context)
                connection.request("GET", "/healthz")
                assert connection.getresponse().read() == b"ok"
                connection.close()
                return
            assert self.process.poll() is None, self.log()
            assert time.monotonic() < until_s, self.log()

    def connect(
        self, context: ssl.SSLContext | None = None, timeout_s: float = TIMEOUT_S
    ) -> http.client.HTTPConnection:
        if context is None:
            return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        return http.client.HTTPSConnection(
            "127.0.0.1", self.port, timeout=timeout_s, context=context
        )

    def post(
        self, number: int = 1, context: ssl.SSLContext | None = None, key: bytes = RAW_KEY
    ) -> tuple[int, bytes]:
        connection = self.connect(context)
        connection.request("POST", PATH, BODY, sign(BODY, f"evt_{number}", key))
        response = connection.getresponse()
        answer = response.status, response.read()
        connection.close()
        return answer

    def send(self, data: bytes, *, end: bool = False) -> bytes:
        """Send raw bytes, and read the status line; `end` says that no more will come."""
        with self.open_socket(data) as connection:
            if end:
                connection.shutdown(socket.SHUT_WR)
            return connection.makefile("rb").readline()

    def open_socket(self, data: bytes) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=TIMEOUT_S)
        connection.sendall(data)
        return connection

    def workers(self) -> list[int]:
        return children(self.process.pid)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(TIMEOUT_S)

    def kill(self) -> None:
        """Kill every process of the receiver at once, and wait until their locks are free."""
        workers = self.workers()
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(TIMEOUT_S)
        for worker in workers:
            wait_until(lambda worker=worker: is_dead(worker), f"the end of {worker}")

    def log(self) -> str:
        return self.log_path.read_text()

    def line_count(self) -> int:
        contents = [read_segment(path) for path in self.spool.ready_segments()]
        assert all(content.is_sealed and not content.damages for content in contents)
        return sum(len(content.lines) for content in contents)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def sign(body: bytes, webhook_id: str = "evt_1", key: bytes = RAW_KEY) -> dict[str, str]:
    timestamp = str(int(time.time()))
    digest = hmac.digest(key, f"{webhook_id}.{timestamp}.".encode() + body, "sha256")
    return {
        "webhook-id": webhook_id,
        "webhook-timestamp": timestamp,
        "webhook-signature": "v1," + base64.b64encode(digest).decode(),
    }


def head(*lines: str, body: bytes = BODY, webhook_id: str = "evt_1") -> bytes:
    """Write the head of a signed request, with more header lines."""
    signed = [f"{name}: {value}" for name, value in sign(body, webhook_id).items()]
    return "\r\n".join([f"POST {PATH} HTTP/1.1", "host: x", *signed, *lines, "", ""]).encode()


def make_certificate(directory: Path) -> None:
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1",
         "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1",
         "-keyout", "key.pem", "-out", "cert.pem"],
        cwd=directory, check=True, capture_output=True,
    )  # fmt: skip


@contextlib.contextmanager
def running(root: Path, *, patch: str = "", **settings: str | None) -> Iterator[Server]:
    server = Server(root, patch=patch, **settings)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            try:
                server.stop()
            except subprocess.TimeoutExpired:
                server.kill()
                raise


def children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


def is_dead(pid: int) -> bool:
    """Say whether a process holds nothing any more, even if nobody has asked how it ended.

    Its first thread may be gone while another, within a sync, still holds files and locks.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        thread_count = len(list(Path(f"/proc/{pid}/task").iterdir()))
    except (FileNotFoundError, ProcessLookupError):
        return True
    return stat.rpartition(") ")[2].startswith(("Z", "X")) and thread_count <= 1


def wait_until(is_so: Callable[[], object], what: str, timeout_s: float = TIMEOUT_S) -> None:
    until_s = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < until_s, f"waited in vain for {what}"
        time.sleep(0.01)


class Sender:
    """Sends deliveries from several threads until it is left; logs what each was answered.

    Every delivery has an id of its own and is sent once, so that an answer tells its fate.
    """

    def __init__(
        self,
        *servers: Server,
        threads: int = 6,
        size_bytes: int = 500,
        name: str = "evt",
        timeout_s: float = TIMEOUT_S,
        pause_s: float = 0.01,
    ) -> None:
        self.acknowledged: set[str] = set()
        self.answers: Counter[str] = Counter()
        self._servers = list(servers)
        self._name = name
        self._timeout_s = timeout_s
        self._pause_s = pause_s
        self._body = b'{"type":"identity.resolved","pad":"%s"}' % (b"x" * size_bytes)
        self._lock = threading.Lock()
        self._count = 0
        self._is_over = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(number,), daemon=True)
            for number in range(threads)
        ]

    def __enter__(self) -> Sender:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """Send nothing more, and wait for the last answers."""
        self._is_over.set()
        for thread in self._threads:
            thread.join(2 * TIMEOUT_S)
            assert not thread.is_alive(), "a request got neither an answer nor an end"

    def move_to(self, *servers: Server) -> None:
        """Send to other servers from now on."""
        self._servers = list(servers)

    def wait_for_more(self, count: int) -> None:
        """Wait until so many more deliveries are acknowledged."""
        wanted = len(self.acknowledged) + count
        wait_until(lambda: len(self.acknowledged) >= wanted, f"{count} more acknowledged")

    def _run(self, number: int) -> None:
        while not self._is_over.is_set():
            # A new connection now and then, so that every process gets its share.
            server = self._servers[number % len(self._servers)]
            with contextlib.closing(server.connect(timeout_s=self._timeout_s)) as connection:
                if not self._send_some(connection):
                    self._is_over.wait(self._pause_s)  # a refusal must not become a busy loop

    def _send_some(self, connection: http.client.HTTPConnection) -> bool:
        return all(
            not self._is_over.is_set() and self._send_one(connection) == "200"
            for _ in range(REQUESTS_PER_CONNECTION)
        )

    def _send_one(self, connection: http.client.HTTPConnection) -> str:
        with self._lock:
            webhook_id = f"{self._name}_{self._count}"
            self._count += 1
        try:
            connection.request("POST", PATH, self._body, sign(self._body, webhook_id))
            response = connection.getresponse()
            response.read()
            answer = str(response.status)
            if answer == "503" and response.getheader("retry-after") is None:
                answer = "503 without Retry-After"
        except (OSError, http.client.HTTPException):
            answer = "none"
        with self._lock:
            self.answers[answer] += 1
            if answer == "200":
                self.acknowledged.add(webhook_id)
        return answer


def recovered_ids(spool: Spool) -> Counter[str]:
    """Recover, and count each id that is then in a sealed segment; nothing may be left open."""
    recover(spool)
    assert spool.open_segments() == []
    return sealed_ids(spool)


def sealed_ids(spool: Spool) -> Counter[str]:
    """Count each id in the sealed segments, all of which have to be sound."""
    return Counter(delivery.webhook_id for delivery in sealed_deliveries(spool.ready_segments()))


def sealed_deliveries(paths: Iterable[Path]) -> Iterator[Delivery]:
    """Give what lies in sealed segments, all of which have to be sound."""
    for path in paths:
        content = read_segment(path)
        assert content.is_sealed, path
        assert not content.damages, (path, content.damages)
        seed = segment_seed(content.name)
        for line in content.lines:
            yield decode_line(content.data[line.start : line.end], seed=seed).delivery
