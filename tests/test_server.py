"""The real server, as a process on a free port: what a test client in the process cannot see."""

from __future__ import annotations

import base64
import contextlib
import hmac
import http.client
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from receiver.counts import read_counts
from receiver.segment import Spool, read_segment

PATH = "/webhooks/midbound"
RAW_KEY = bytes(range(24))
SECRET = "whsec_" + base64.b64encode(RAW_KEY).decode()
BODY = b'{"id":"evt_1","type":"identity.resolved"}'
LIMIT_BYTES = 5000
TIMEOUT_S = 15.0
START = (
    "from receiver.config import read_settings; from receiver.server import serve;"
    "serve(read_settings())"
)


class Server:
    """One receiver: its process, its port, its spool and its log."""

    def __init__(self, root: Path, **settings: str) -> None:
        self.root = root
        self.spool = Spool(root / "spool")
        self.port = free_port()
        self.log_path = root / "log"
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
                [sys.executable, "-c", START],
                cwd=root,
                env=environ,
                stdout=log,
                stderr=log,
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

    def connect(self, context: ssl.SSLContext | None = None) -> http.client.HTTPConnection:
        if context is None:
            return http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT_S)
        return http.client.HTTPSConnection(
            "127.0.0.1", self.port, timeout=TIMEOUT_S, context=context
        )

    def post(self, number: int = 1, context: ssl.SSLContext | None = None) -> tuple[int, bytes]:
        connection = self.connect(context)
        connection.request("POST", PATH, BODY, sign(BODY, f"evt_{number}"))
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

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(TIMEOUT_S)

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


def sign(body: bytes, webhook_id: str = "evt_1") -> dict[str, str]:
    timestamp = str(int(time.time()))
    digest = hmac.digest(RAW_KEY, f"{webhook_id}.{timestamp}.".encode() + body, "sha256")
    return {
        "webhook-id": webhook_id,
        "webhook-timestamp": timestamp,
        "webhook-signature": "v1," + base64.b64encode(digest).decode(),
    }


def head(*lines: str, body: bytes = BODY) -> bytes:
    """Write the head of a signed request, with more header lines."""
    signed = [f"{name}: {value}" for name, value in sign(body).items()]
    return "\r\n".join([f"POST {PATH} HTTP/1.1", "host: x", *signed, *lines, "", ""]).encode()


def chunked(*chunks: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)


@contextlib.contextmanager
def running(root: Path, **settings: str) -> Iterator[Server]:
    server = Server(root, **settings)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.stop()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("server"), RECEIVER__BODY_TIMEOUT_S="0.5") as server:
        server.wait_until_up()
        yield server


def test_a_signed_delivery_is_answered_200_and_sealed_on_sigterm(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        server.wait_until_up()
        assert [server.post(number) for number in range(20)] == [(200, b"ok")] * 20
        assert server.stop() == 0
        assert server.spool.open_segments() == []
        assert server.line_count() == 20
        assert read_counts(server.spool).accepted == 20
        assert SECRET.removeprefix("whsec_") not in server.log()
        assert (
            f"event=listening address='http://127.0.0.1:{server.port}{PATH}' "
            "spool='spool' workers=2 keys='0:base64,0:text'"
        ) in server.log()


def test_what_a_killed_receiver_left_is_sealed_by_the_next(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        server.wait_until_up()
        assert server.post() == (200, b"ok")
        workers = children(server.process.pid)
        server.process.kill()
        server.process.wait(TIMEOUT_S)
        for worker in workers:
            os.kill(worker, signal.SIGKILL)
    assert len(server.spool.open_segments()) == 1
    with running(tmp_path) as server:
        server.wait_until_up()
        assert server.line_count() == 1


def test_a_spool_that_cannot_take_an_event_is_answered_503_until_it_can(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        server.wait_until_up()
        away = server.spool.open.rename(server.spool.path / "away")
        connection = server.connect()
        connection.request("POST", PATH, BODY, sign(BODY))
        response = connection.getresponse()
        assert (response.status, response.read()) == (503, b"unavailable")
        assert response.getheader("retry-after") == "5"
        connection.close()
        away.rename(server.spool.open)
        assert server.post() == (200, b"ok")
        assert server.stop() == 0
        assert server.line_count() == 1
        assert read_counts(server.spool).refused == {"spool_failed": 1}


def children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


def test_a_chunked_body_is_kept(server: Server) -> None:
    request = head("transfer-encoding: chunked") + chunked(BODY[:5], BODY[5:]) + b"0\r\n\r\n"
    assert server.send(request) == b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        pytest.param(
            head("transfer-encoding: chunked") + chunked(b"1" * LIMIT_BYTES, b"1"),
            413,
            id="a chunked body over the limit, without an end",
        ),
        pytest.param(head("content-length: 5001"), 413, id="a length over the limit"),
        pytest.param(head("content-encoding: gzip", "content-length: 1"), 415, id="compressed"),
        pytest.param(head("webhook-id: evt_1", "content-length: 1"), 401, id="two ids"),
        pytest.param(head("Webhook-Timestamp: 1", "content-length: 1"), 401, id="two times"),
        pytest.param(
            head("webhook-signature: v1,a", "content-length: 1"), 401, id="two signatures"
        ),
        pytest.param(
            b"POST /webhooks/midbound HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\n",
            401,
            id="unsigned, and refused before its body comes",
        ),
        pytest.param(head("content-length: 41"), 408, id="a body that never comes"),
        pytest.param(
            head("transfer-encoding: chunked") + chunked(BODY[:9]), 408, id="chunks that stop"
        ),
        pytest.param(
            head("transfer-encoding: chunked") + chunked(BODY[:9]) + b"zz\r\n",
            401,
            id="a bad chunk",
        ),
        pytest.param(head("content-length: +41") + BODY, 400, id="a length with a sign"),
        pytest.param(
            head("content-length: 41", "content-length: 40") + BODY, 400, id="two lengths"
        ),
        pytest.param(b"GET /webhooks/midbound HTTP/1.1\r\nhost: x\r\n\r\n", 405, id="a GET"),
        pytest.param(
            b"POST /webhooks/midbound/ HTTP/1.1\r\nhost: x\r\n\r\n", 404, id="a slash more"
        ),
        pytest.param(
            b"POST //webhooks/midbound HTTP/1.1\r\nhost: x\r\n\r\n", 401, id="two slashes, unsigned"
        ),
        pytest.param(b"GET /%ff%00?%ff HTTP/1.1\r\nhost: x\r\n\r\n", 404, id="an odd path"),
    ],
)
def test_a_bad_request_is_refused_and_nothing_of_it_is_kept(
    server: Server, request_bytes: bytes, status: int
) -> None:
    before = accepted_bytes(server)
    assert server.send(request_bytes).startswith(b"HTTP/1.1 %d " % status)
    assert accepted_bytes(server) == before


def accepted_bytes(server: Server) -> int:
    paths = [*server.spool.open_segments(), *server.spool.ready_segments()]
    lines = [line for path in paths for line in read_segment(path, is_open=True).lines]
    return sum(line.end - line.start for line in lines)


def test_a_body_shorter_than_declared_is_never_kept(server: Server) -> None:
    before = accepted_bytes(server)
    answer = server.send(head("content-length: 42") + BODY, end=True)
    assert answer in (b"", b"HTTP/1.1 400 Bad Request\r\n")
    assert accepted_bytes(server) == before


def test_thirty_slow_clients_do_not_hold_up_a_healthy_one(server: Server) -> None:
    slow = [server.open_socket(head("content-length: 41")[:-2]) for _ in range(15)]
    slow += [server.open_socket(head("content-length: 41") + b"{") for _ in range(15)]
    began_at_s = time.monotonic()
    assert server.post() == (200, b"ok")
    assert time.monotonic() - began_at_s < 5
    for connection in slow:
        connection.close()


def test_readiness_and_health_are_answered(server: Server) -> None:
    for path in ("/healthz", "/readyz"):
        connection = server.connect()
        connection.request("GET", path)
        response = connection.getresponse()
        assert (response.status, response.read()) == (200, b"ok")
        connection.close()


def test_without_a_secret_it_does_not_start_and_says_why(tmp_path: Path) -> None:
    with running(tmp_path, RECEIVER__WEBHOOK_SECRET="") as server:
        assert server.process.wait(TIMEOUT_S) == 1
        assert server.log().splitlines()[-1] == (
            "receiver.errors.ConfigurationError: receiver.webhook_secret is not set; put the "
            "signing secret of the endpoint into .dlt/secrets.toml under [receiver] "
            "webhook_secret, or into the environment as RECEIVER__WEBHOOK_SECRET"
        )


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the program openssl")
def test_with_a_certificate_it_speaks_tls(tmp_path: Path) -> None:
    make_certificate(tmp_path)
    context = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
    with running(
        tmp_path, RECEIVER__TLS_CERTIFICATE="cert.pem", RECEIVER__TLS_KEY="key.pem"
    ) as server:
        server.wait_until_up(context)
        assert server.post(context=context) == (200, b"ok")
        assert f"address='https://127.0.0.1:{server.port}{PATH}'" in server.log()


def make_certificate(directory: Path) -> None:
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1",
         "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1",
         "-keyout", "key.pem", "-out", "cert.pem"],
        cwd=directory, check=True, capture_output=True,
    )  # fmt: skip
