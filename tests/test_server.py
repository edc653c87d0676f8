"""The real server, as a process on a free port: what a test client in the process cannot see."""

from __future__ import annotations

import os
import shutil
import signal
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import (
    BODY,
    LIMIT_BYTES,
    PATH,
    SECRET,
    TIMEOUT_S,
    Server,
    head,
    make_certificate,
    running,
    sign,
    wait_until,
)

from receiver.counts import read_counts
from receiver.segment import read_segment


def chunked(*chunks: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("server"), RECEIVER__BODY_TIMEOUT_S="2") as server:
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
            "spool='spool' workers=2 keys='bffcb3:base64,bffcb3:text'"
        ) in server.log()


@pytest.mark.parametrize(("method", "path"), [("POST", "/" + PATH), ("post", PATH)])
def test_the_front_takes_for_a_delivery_what_the_application_does(
    tmp_path: Path, method: str, path: str
) -> None:
    """Else the application would see it without its body, and wait for the disk for all others."""
    with running(tmp_path) as server:
        server.wait_until_up()
        for signed in (BODY, b""):
            connection = server.connect()
            connection.request(method, path, BODY, sign(signed))
            status = connection.getresponse().status
            assert status == (200 if signed else 401)
            connection.close()
        assert server.stop() == 0
        (segment,) = server.spool.ready_segments()
        content = read_segment(segment)
        (span,) = content.lines
        assert BODY in content.data[span.start : span.end]


def test_what_a_killed_receiver_left_is_sealed_by_the_next(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        server.wait_until_up()
        assert server.post() == (200, b"ok")
        server.kill()
    assert len(server.spool.open_segments()) == 1
    with running(tmp_path) as server:
        server.wait_until_up()
        # Only one of its processes seals it, perhaps not the one that has answered.
        wait_until(lambda: server.line_count() == 1, "the seal")


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


BROKEN_REFUSAL = """
import receiver.server as served
def fail(*_):
    raise RuntimeError
served.refuse = fail
"""


def test_an_error_within_a_refusal_is_answered_503(tmp_path: Path) -> None:
    with running(tmp_path, patch=BROKEN_REFUSAL) as server:
        server.wait_until_up()
        assert server.send(f"POST {PATH} HTTP/1.1\r\nhost: x\r\n\r\n".encode()) == (
            b"HTTP/1.1 503 Service Unavailable\r\n"
        )


def test_a_chunked_body_is_kept(server: Server) -> None:
    request = head("transfer-encoding: chunked") + chunked(BODY[:5], BODY[5:]) + b"0\r\n\r\n"
    assert server.send(request) == b"HTTP/1.1 200 OK\r\n"


CHUNKED = "transfer-encoding: chunked"


# Signed as the test runs: a signature of the collection might be too old by then.
@pytest.mark.parametrize(
    ("lines", "sent", "status"),
    [
        pytest.param(
            [CHUNKED],
            chunked(b"1" * LIMIT_BYTES, b"1"),
            413,
            id="a chunked body over the limit, without an end",
        ),
        pytest.param(["content-length: 5001"], b"", 413, id="a length over the limit"),
        pytest.param(["content-encoding: gzip", "content-length: 1"], b"", 415, id="compressed"),
        pytest.param(["webhook-id: evt_1", "content-length: 1"], b"", 401, id="two ids"),
        pytest.param(["Webhook-Timestamp: 1", "content-length: 1"], b"", 401, id="two times"),
        pytest.param(["webhook-signature: v1,a", "content-length: 1"], b"", 401, id="two entries"),
        pytest.param(["content-length: 41"], b"", 408, id="a body that never comes"),
        pytest.param([CHUNKED], chunked(BODY[:9]), 408, id="chunks that stop"),
        pytest.param([CHUNKED], chunked(BODY[:9]) + b"zz\r\n", 401, id="a bad chunk"),
        pytest.param(["content-length: +41"], BODY, 400, id="a length with a sign"),
        pytest.param(
            ["transfer-encoding: identity", CHUNKED],
            chunked(BODY) + b"0\r\n\r\n",
            400,
            id="chunked and something else",
        ),
        pytest.param([CHUNKED, CHUNKED], chunked(BODY) + b"0\r\n\r\n", 400, id="chunked twice"),
        pytest.param(["content-length: 41", "content-length: 40"], BODY, 400, id="two lengths"),
    ],
)
def test_a_bad_signed_request_is_refused_and_nothing_of_it_is_kept(
    server: Server, lines: list[str], sent: bytes, status: int
) -> None:
    check_refusal(server, head(*lines) + sent, status)


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        pytest.param(
            b"POST /webhooks/midbound HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\n",
            401,
            id="unsigned, and refused before its body comes",
        ),
        pytest.param(b"GET /webhooks/midbound HTTP/1.1\r\nhost: x\r\n\r\n", 405, id="a GET"),
        pytest.param(
            b"POST /webhooks/midbound/ HTTP/1.1\r\nhost: x\r\n\r\n", 404, id="a slash more"
        ),
        pytest.param(
            b"POST //webhooks/midbound HTTP/1.1\r\nhost: x\r\n\r\n", 401, id="two slashes"
        ),
        pytest.param(b"GET /%ff%00?%ff HTTP/1.1\r\nhost: x\r\n\r\n", 404, id="an odd path"),
    ],
)
def test_an_unsigned_request_is_refused(server: Server, request_bytes: bytes, status: int) -> None:
    check_refusal(server, request_bytes, status)


def check_refusal(server: Server, request_bytes: bytes, status: int) -> None:
    before = accepted_bytes(server)
    assert server.send(request_bytes).startswith(b"HTTP/1.1 %d " % status)
    assert accepted_bytes(server) == before


def accepted_bytes(server: Server) -> int:
    paths = [*server.spool.open_segments(), *server.spool.ready_segments()]
    lines = [line for path in paths for line in read_segment(path, is_open=True).lines]
    return sum(line.end - line.start for line in lines)


@pytest.mark.parametrize("coding", [b"gzip\xff", b"\xff", b"gzip\x80, identity"])
def test_an_encoding_that_is_not_ascii_is_not_taken_for_none(server: Server, coding: bytes) -> None:
    request = head("content-length: 41", "content-encoding: @")
    check_refusal(server, request.replace(b"@", coding) + BODY, 415)


@pytest.mark.parametrize("name", ["transfer-encoding", "content-length"])
def test_framing_that_is_not_ascii_is_refused(server: Server, name: str) -> None:
    request = head("content-length: 41", f"{name}: ?").replace(b"?", b"\xff")
    check_refusal(server, request + BODY, 400)


def test_an_id_that_is_not_ascii_is_refused(server: Server) -> None:
    request = head("content-length: 41").replace(b"evt_1", b"evt_\xff")
    check_refusal(server, request + BODY, 401)


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


def test_a_second_receiver_on_the_same_port_does_not_start_and_says_why(server: Server) -> None:
    with running(server.root, RECEIVER__PORT=str(server.port)) as second:
        assert second.process.wait(TIMEOUT_S) == 1
        assert second.log().splitlines()[-1] == (
            f"receiver.errors.ConfigurationError: cannot listen on 127.0.0.1 port {server.port}: "
            "Address already in use; set receiver.host and receiver.port (RECEIVER__HOST, "
            "RECEIVER__PORT) to a free address of this machine"
        )


def test_a_process_that_is_replaced_lives_on_without_a_spool_as_the_others_do(
    tmp_path: Path,
) -> None:
    with running(tmp_path) as server:
        server.wait_until_up()
        assert server.post(1) == (200, b"ok")
        server.spool.path.chmod(0o770)
        victim = server.workers()[0]
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: "spool_not_ready" in server.log(), "a new process")
        assert (
            "level=ERROR event=spool_not_ready error='other users can write to spool "
            "(mode 0770); run: chmod 700 spool'"
        ) in server.log()
        wait_until(lambda: len(server.workers()) == 2, "two processes")
        assert [server.post(number)[0] for number in range(2, 20)] == [200] * 18
        assert server.stop() == 0
        assert server.line_count() == 19


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


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the program openssl")
def test_a_reload_with_a_broken_certificate_keeps_the_processes(tmp_path: Path) -> None:
    make_certificate(tmp_path)
    context = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
    with running(
        tmp_path,
        RECEIVER__TLS_CERTIFICATE="cert.pem",
        RECEIVER__TLS_KEY="key.pem",
        RECEIVER__WORKERS="1",  # one that has answered has read its key
    ) as server:
        server.wait_until_up(context)
        workers = server.workers()
        (tmp_path / "key.pem").unlink()
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "event=not_reloaded" in server.log(), "a line in the log")
        assert (
            " level=ERROR event=not_reloaded error='receiver.tls_key: cannot read key.pem: "
            "No such file or directory; set it to a file that the receiver may read'\n"
        ) in server.log()
        assert server.post(context=context) == (200, b"ok")
        assert server.workers() == workers
