"""Sending: signatures that others accept, and an honest count of what was answered."""

from __future__ import annotations

import argparse
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from pipelines.demo import send
from pipelines.demo.generate import generate_events
from pipelines.demo.send import Sender, plan
from pipelines.demo.sign import sign
from receiver.config import Settings, read_settings
from receiver.errors import ConfigurationError

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
EVENTS = list(generate_events(40, seed=5))


class Door(BaseHTTPRequestHandler):
    """Verify with the library of the specification's authors, and remember."""

    protocol_version = "HTTP/1.1"
    accepted: list[str]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        try:
            Webhook(SECRET).verify(body, dict(self.headers))
            self.accepted.append(self.headers["webhook-id"])
            status = 200
        except WebhookVerificationError:
            status = 401
        self.send_response(status)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Stay quiet."""


@pytest.fixture
def door() -> Iterator[tuple[str, list[str]]]:
    accepted: list[str] = []
    handler = type("OneDoor", (Door,), {"accepted": accepted})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/webhooks/midbound", accepted
    server.shutdown()
    thread.join()
    server.server_close()


def _settings(secret: str = SECRET) -> Settings:
    return read_settings(environ={"RECEIVER__WEBHOOK_SECRET": secret})


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


def test_a_receiver_that_is_not_there_is_counted() -> None:
    answers = Sender("http://127.0.0.1:9/webhooks/midbound", SECRET).post_all(
        plan(EVENTS[:3], repeat_share=0.0, bad_share=0.0, seed=1)
    )
    assert answers.describe() == "3 without an answer"


@pytest.mark.parametrize("url", ["ftp://x/y", "nonsense", "http://"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Sender(url, SECRET)
    assert str(caught.value) == (
        f"{url!r} is not an address to send to; give one like http://127.0.0.1:8080/webhooks/midbound"
    )
