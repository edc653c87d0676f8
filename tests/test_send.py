"""Sending: signatures that others accept, and an honest count of what was answered."""

from __future__ import annotations

import argparse
import http.client
import shutil
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from serving import make_certificate, wait_until
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

import receiver.app
from pipelines.demo import send
from pipelines.demo.generate import generate_events
from pipelines.demo.send import Delivery, Sender, plan
from pipelines.demo.sign import sign
from receiver.config import Settings, read_settings
from receiver.errors import ConfigurationError
from receiver.server import HEADER_TIMEOUT_MS

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
EVENTS = list(generate_events(40, seed=5))


class Door(BaseHTTPRequestHandler):
    """Verify with the library of the specification's authors, and remember."""

    protocol_version = "HTTP/1.1"
    accepted: list[str]
    targets: list[str]
    clients: list[tuple[str, int]]
    key: str | bytes

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.targets.append(self.path)
        self.clients.append(self.client_address)
        try:
            Webhook(self.key).verify(body, dict(self.headers))
            self.accepted.append(self.headers["webhook-id"])
            status = 200
        except WebhookVerificationError:
            status = 401
        self.send_response(status)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Stay quiet."""


@contextmanager
def _open_door(
    key: str | bytes = SECRET, context: ssl.SSLContext | None = None
) -> Iterator[tuple[str, type[Door]]]:
    fresh = {"accepted": [], "targets": [], "clients": [], "key": key}
    handler = type("OneDoor", (Door,), fresh)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    if context is not None:
        # The handshake is the business of the connection's own thread; one that fails is expected.
        server.socket = context.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
        server.handle_error = lambda *_: None
    scheme = "http" if context is None else "https"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"{scheme}://127.0.0.1:{server.server_port}/webhooks/midbound", handler
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def door() -> Iterator[tuple[str, list[str]]]:
    with _open_door() as (url, handler):
        yield url, handler.accepted


def _settings(secret: str = SECRET, **others: str) -> Settings:
    named = {f"RECEIVER__{name.upper()}": text for name, text in others.items()}
    return read_settings(environ={"RECEIVER__WEBHOOK_SECRET": secret} | named)


def _arguments(*texts: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    send.add_arguments(parser)
    return parser.parse_args(texts)


def test_both_derivations_are_those_of_the_library() -> None:
    body = b'{"a":1}'
    for derivation, key in (("base64", SECRET), ("text", SECRET.removeprefix("whsec_").encode())):
        signature = sign(SECRET, "evt_1", "1739571908", body, derivation)
        assert signature == Webhook(key).sign("evt_1", _instant(1739571908), body.decode())


def _instant(seconds: int) -> object:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(seconds, UTC)


def test_every_event_is_sent_and_counted(door: tuple[str, list[str]]) -> None:
    url, accepted = door
    answers = Sender(url, SECRET).post_all(plan(EVENTS, repeat_share=0.0, bad_share=0.0, seed=1))
    assert sorted(accepted) == sorted(event.webhook_id for event in EVENTS)
    assert sorted(answers.accepted_ids) == sorted(accepted)
    assert dict(answers.statuses) == {200: len(EVENTS)}


def test_repeats_come_again_and_forgeries_are_refused(door: tuple[str, list[str]]) -> None:
    url, accepted = door
    deliveries = list(plan(EVENTS, repeat_share=0.5, bad_share=0.5, seed=1))
    forged_count = sum(delivery.is_forged for delivery in deliveries)
    answers = Sender(url, SECRET, connections=1).post_all(deliveries)
    assert 0 < forged_count < len(EVENTS)
    assert answers.statuses == {200: len(deliveries) - forged_count, 401: forged_count}
    assert len(accepted) > len(set(accepted)) == len(EVENTS)


def test_the_command_prints_what_was_answered(
    door: tuple[str, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    url, _ = door
    assert send.run(_arguments("--url", url, "--count", "5", "--sample"), _settings()) == 0
    assert capsys.readouterr().out.startswith(f"6 deliveries to {url}: 6 answered 200, half within")


def test_the_command_fails_when_a_good_delivery_is_refused(
    door: tuple[str, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    url, _ = door
    other = _settings("whsec_" + "B" * 32)
    assert send.run(_arguments("--url", url, "--count", "3"), other) == 1
    assert capsys.readouterr().err == (
        "midbound send: 3 well-signed deliveries were not accepted; look at the receiver's log\n"
    )


@pytest.mark.parametrize(("reuse_within_s", "connection_count"), [(3600.0, 1), (-1.0, 5)])
def test_a_connection_that_was_idle_too_long_is_opened_again(
    reuse_within_s: float, connection_count: int
) -> None:
    """The receiver ends idle connections, and what is sent at that moment gets no answer."""
    assert send.REUSE_WITHIN_S < HEADER_TIMEOUT_MS / 1000
    with _open_door() as (url, handler):
        sender = Sender(url, SECRET, connections=1)
        sender.reuse_within_s = reuse_within_s
        answers = sender.post_all(plan(EVENTS[:5], repeat_share=0.0, bad_share=0.0, seed=1))
        assert answers.statuses == {200: 5}
        assert len(set(handler.clients)) == connection_count


@pytest.mark.parametrize(
    ("url", "count", "told"),
    [
        (
            "http://127.0.0.1:9/webhooks/midbound",
            "1",
            "1 well-signed delivery was not accepted; the first without an answer: Connection "
            "refused; check the address, and that the receiver runs there",
        ),
        (
            "http://127.0.0.1:9/webhooks/midbound",
            "3",
            "3 well-signed deliveries were not accepted; the first without an answer: Connection "
            "refused; check the address, and that the receiver runs there",
        ),
        (
            "http://127.0.0.1:9/a b",
            "1",
            "1 well-signed delivery was not accepted; the first without an answer: URL can't "
            "contain control characters. '/a b' (found at least ' '); check the address, and that "
            "the receiver runs there",
        ),
    ],
)
def test_why_there_was_no_answer_is_told(
    url: str, count: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert send.run(_arguments("--url", url, "--count", count), _settings()) == 1
    assert capsys.readouterr().err == f"midbound send: {told}\n"


def test_without_an_address_a_receiver_with_tls_is_to_be_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its certificate is made out to a name that no setting holds."""
    settings = _settings(tls_certificate="c.pem", tls_key="k.pem", port="9")
    assert send.run(_arguments("--count", "2"), settings) == 1
    assert capsys.readouterr().err == (
        "midbound send: 2 well-signed deliveries were not accepted; the first without an answer: "
        "Connection refused; give the name of the certificate: --url "
        "https://your.name/webhooks/midbound\n"
    )


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ConnectionRefusedError(111, "Connection refused"), "Connection refused"),
        (socket.gaierror(-2, "Name or service not known"), "Name or service not known"),
        (TimeoutError("timed out"), "timed out"),
        (http.client.RemoteDisconnected("Remote end closed"), "Remote end closed"),
        (http.client.CannotSendRequest(), "CannotSendRequest"),
    ],
)
def test_every_error_has_a_text(error: Exception, text: str) -> None:
    assert send._describe_error(error) == text


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the program openssl")
def test_a_certificate_that_is_not_trusted_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    with _open_door(context=context) as (url, _):
        assert send.run(_arguments("--url", url, "--count", "1"), _settings()) == 1
    assert capsys.readouterr().err == (
        "midbound send: 1 well-signed delivery was not accepted; the first without an answer: the "
        "certificate is not trusted, self-signed certificate (SSL_CERT_FILE can name one to "
        "trust); check the address, and that the receiver runs there\n"
    )


@pytest.mark.parametrize("url", ["http://x/webhooks/mïdbound", "https://bücher.example/webhooks"])
def test_an_address_that_is_not_ascii_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Sender(url, SECRET)
    assert str(caught.value) == (
        f"{url!r} holds characters that are not ASCII; write those of a path as %C3%A4, and a host "
        "as its xn-- name"
    )


def test_a_receiver_that_is_not_there_is_counted() -> None:
    answers = Sender("http://127.0.0.1:9/webhooks/midbound", SECRET).post_all(
        plan(EVENTS[:3], repeat_share=0.0, bad_share=0.0, seed=1)
    )
    assert answers.describe() == "3 without an answer"


@pytest.mark.parametrize(
    ("secret", "others"),
    [
        (SECRET, {"key_derivation": "text"}),
        ("a-secret-that-is-no-base64!", {}),  # then only its text can be the key
    ],
)
def test_the_command_signs_as_the_settings_let_the_receiver_verify(
    secret: str, others: dict[str, str]
) -> None:
    with _open_door(secret.removeprefix("whsec_").encode()) as (url, handler):
        assert send.run(_arguments("--url", url, "--count", "3"), _settings(secret, **others)) == 0
        assert len(handler.accepted) == 3


def test_a_query_in_the_address_is_sent() -> None:
    with _open_door() as (url, handler):
        assert send.run(_arguments("--url", f"{url}?token=x#y"), _settings()) == 0
        assert handler.targets == ["/webhooks/midbound?token=x"]


def test_waiting_for_the_next_delivery_holds_up_no_answer() -> None:
    with _open_door() as (url, _):
        sender = Sender(url, SECRET, connections=2)

        def wait_for_an_answer() -> Iterator[Delivery]:
            yield Delivery(event=EVENTS[0])
            wait_until(lambda: sender._answers.statuses[200] == 1, "an answer beside the wait")
            yield Delivery(event=EVENTS[1])

        assert sender.post_all(wait_for_an_answer()).statuses == {200: 2}


def test_deliveries_are_due_at_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    waits_s: list[float] = []
    standing = SimpleNamespace(monotonic=lambda: 100.0, sleep=waits_s.append)
    monkeypatch.setattr(send, "time", standing)
    deliveries = plan(EVENTS[:4], repeat_share=0.0, bad_share=0.0, seed=1)
    assert len(list(Sender("http://x", SECRET, rate=4)._paced(deliveries))) == 4
    assert waits_s == [0.0, 0.25, 0.5, 0.75]


@pytest.mark.parametrize(
    ("others", "expected"),
    [
        ({}, "http://127.0.0.1:8080"),
        ({"host": "::1", "port": "9000"}, "http://[::1]:9000"),
        ({"tls_certificate": "c.pem", "tls_key": "k.pem"}, "https://127.0.0.1:8080"),
    ],
)
def test_without_an_address_it_is_the_receiver_of_the_settings(
    others: dict[str, str], expected: str
) -> None:
    assert send._default_url(_settings(**others).receiver) == expected + receiver.app.WEBHOOK_PATH


@pytest.mark.parametrize(
    ("option", "value", "problem"),
    [
        ("--count", "-3", "'-3' is not a whole number from 0 up"),
        ("--connections", "0", "'0' is not a whole number from 1 up"),
        ("--rate", "nan", "'nan' is not a number of deliveries a second, or 0 for no limit"),
        ("--bad-share", "7", "'7' is not a share from 0 to 1"),
        ("--repeat-share", "many", "'many' is not a share from 0 to 1"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused(
    option: str, value: str, problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        _arguments(f"{option}={value}")
    assert caught.value.code == 2
    assert capsys.readouterr().err.endswith(f"error: argument {option}: {problem}\n")


@pytest.mark.parametrize(
    "url", ["ftp://x/y", "nonsense", "http://", "http://x:99999/y", "http://x:0/y", "http://[::1/y"]
)
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Sender(url, SECRET)
    assert str(caught.value) == (
        f"{url!r} is not an address to send to; give one like http://127.0.0.1:8080/webhooks/midbound"
    )
