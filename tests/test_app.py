"""What each request is answered, and what of it is kept: 200 only for what is durable."""

from __future__ import annotations

import base64
import errno
import hmac
import io
import logging
import os
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from serving import wait_until
from werkzeug.test import TestResponse

from receiver.app import INTAKE_KEY, PREPARED_KEY, Prepared, create_app
from receiver.clock import Clock
from receiver.config import ReceiverSettings, Settings, SpoolSettings
from receiver.counts import read_counts
from receiver.disk import Disk
from receiver.errors import ConfigurationError, SpoolError
from receiver.record import Delivery, decode_line, segment_seed
from receiver.segment import Spool, read_segment

PATH = "/webhooks/midbound"
NOW_S = 1_739_571_908
RAW_KEY = bytes(range(24))
SECRET = "whsec_" + base64.b64encode(RAW_KEY).decode()
BODY = b'{"id":"evt_1","type":"identity.resolved"}'
LIMIT_BYTES = 2000
TEXT = "text/plain; charset=utf-8"


class SetClock(Clock):
    def now(self) -> datetime:
        return datetime.fromtimestamp(NOW_S, UTC)


class FailingDisk(Disk):
    failing = False

    def fdatasync(self, descriptor: int) -> None:
        if self.failing:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        super().fdatasync(descriptor)


class Door:
    """The application, and what a test wants to see of it."""

    def __init__(self, tmp_path: Path) -> None:
        self.spool = Spool(tmp_path / "spool")
        self.disk = FailingDisk()
        self.settings = Settings(
            spool=SpoolSettings(path=self.spool.path, min_free_bytes=0),
            receiver=ReceiverSettings(webhook_secret=(SECRET,), max_body_bytes=LIMIT_BYTES),
        )
        self.app: Flask = create_app(self.settings, disk=self.disk, clock=SetClock())
        self.client = self.app.test_client()

    def post(
        self, body: bytes = BODY, *, signed: bytes | None = None, **changes: str
    ) -> TestResponse:
        return self.client.post(
            PATH, data=body, headers=sign(body if signed is None else signed, changes)
        )

    def close(self) -> None:
        self.app.extensions[INTAKE_KEY].close()

    def kept(self) -> list[Delivery]:
        """Close, and read every line of the spool."""
        self.close()
        assert self.spool.open_segments() == []
        found = []
        for path in self.spool.ready_segments():
            content = read_segment(path)
            assert content.damages == []
            seed = segment_seed(content.name)
            found += [
                decode_line(content.data[a:b], seed=seed).delivery for a, b, _ in content.lines
            ]
        return found


def sign(body: bytes, changes: dict[str, str] | None = None) -> dict[str, str]:
    """Give the three headers; `changes` replaces them by name (_ for -), empty to leave one out."""
    given = {"webhook-id": "evt_1", "webhook-timestamp": str(NOW_S)}
    changed = {name.replace("_", "-"): value for name, value in (changes or {}).items()}
    given.update({name: value for name, value in changed.items() if name in given})
    text = f"{given['webhook-id']}.{given['webhook-timestamp']}.".encode() + body
    digest = hmac.digest(RAW_KEY, text, "sha256")
    given["webhook-signature"] = "v1," + base64.b64encode(digest).decode()
    return {name: value for name, value in (given | changed).items() if value}


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    door = Door(tmp_path)
    yield door
    door.disk.failing = False
    door.close()


def test_a_signed_delivery_is_answered_200_and_kept_as_it_came(door: Door) -> None:
    response = door.post()
    assert (response.status_code, response.data) == (200, b"ok")
    assert door.kept() == [
        Delivery(
            webhook_id="evt_1",
            webhook_timestamp=str(NOW_S),
            webhook_signature=sign(BODY)["webhook-signature"],
            received_at="2025-02-14T22:25:08.000000Z",
            body=BODY,
        )
    ]


def test_200_means_that_the_line_is_on_disk_already(door: Door) -> None:
    assert door.post().status_code == 200
    [path] = door.spool.open_segments()
    assert len(read_segment(path, is_open=True).lines) == 1


@pytest.mark.parametrize(
    "body",
    [
        b"", b"not json", b"\xff\x00", b"\xef\xbb\xbf{}", b"{\n}\r\n", b"[]", b"17",
        b'{"type":"identity.unheard.of"}', b'{"data":{}}', b"[" * LIMIT_BYTES,
    ],
)  # fmt: skip
def test_any_signed_body_is_kept_byte_for_byte(door: Door, body: bytes) -> None:
    assert door.post(body).status_code == 200
    assert [delivery.body for delivery in door.kept()] == [body]


def test_repeats_are_all_kept(door: Door) -> None:
    assert [door.post().status_code for _ in range(3)] == [200, 200, 200]
    assert len(door.kept()) == 3


def test_only_the_entry_that_was_proven_is_stored(door: Door) -> None:
    good = sign(BODY)["webhook-signature"]
    assert door.post(webhook_signature=f"v1,AAAA {good} v9,<script>").status_code == 200
    assert [delivery.webhook_signature for delivery in door.kept()] == [good]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"webhook_id": ""}, "missing_header"),
        ({"webhook_timestamp": ""}, "missing_header"),
        ({"webhook_signature": ""}, "missing_header"),
        ({"webhook_id": "a,b"}, "bad_id"),
        ({"webhook_id": "a" * 257}, "bad_id"),
        ({"webhook_timestamp": "soon"}, "bad_timestamp"),
        ({"webhook_timestamp": str(NOW_S - 301)}, "stale"),
        ({"webhook_timestamp": str(NOW_S + 301)}, "stale"),
        ({"webhook_signature": "v1,AAAA"}, "wrong_signature"),
        ({"webhook_signature": "v1," + "A" * 43 + "="}, "wrong_signature"),
    ],
)
def test_whatever_check_fails_the_answer_is_the_same_and_nothing_is_kept(
    door: Door, changes: dict[str, str], reason: str
) -> None:
    response = door.post(**changes)
    assert response.status_code == 401
    assert response.data == b"unauthorized"
    assert dict(response.headers) == {"content-type": TEXT, "Content-Length": "12"}
    assert door.kept() == []
    assert read_counts(door.spool).refused == {reason: 1}


def test_a_changed_body_is_refused(door: Door) -> None:
    assert door.post(BODY + b" ", signed=BODY).status_code == 401
    assert door.kept() == []


def test_a_body_at_the_limit_is_kept_and_one_above_is_refused(door: Door) -> None:
    assert door.post(b"1" * LIMIT_BYTES).status_code == 200
    response = door.post(b"1" * (LIMIT_BYTES + 1))
    assert (response.status_code, response.data) == (413, b"content too large")
    assert [len(delivery.body) for delivery in door.kept()] == [LIMIT_BYTES]


@pytest.mark.parametrize("declared", [None, "5", "41", "42", "-1", "+41", "4x", "9" * 5000])
def test_a_body_that_is_not_as_long_as_declared_is_never_kept_in_part(
    door: Door, declared: str | None
) -> None:
    """41 is its length."""
    environ = {"wsgi.input": io.BytesIO(BODY), "CONTENT_LENGTH": declared}
    response = door.client.post(
        PATH,
        headers=sign(BODY),
        environ_overrides={name: value for name, value in environ.items() if value is not None},
    )
    assert (response.status_code == 200) == (declared == "41")
    assert response.status_code in (200, 400, 401), response.status
    assert [delivery.body for delivery in door.kept()] == ([BODY] if declared == "41" else [])


def test_a_short_body_is_answered_400(door: Door) -> None:
    response = door.client.post(
        PATH,
        headers=sign(BODY),
        environ_overrides={"wsgi.input": io.BytesIO(BODY[:10]), "CONTENT_LENGTH": "41"},
    )
    assert (response.status_code, response.data) == (400, b"bad request")
    assert door.kept() == []


def endless() -> io.RawIOBase:
    class Endless(io.RawIOBase):
        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            buffer[:] = b"1" * len(buffer)
            return len(buffer)

    return Endless()


def test_an_endless_body_without_length_is_refused_at_the_limit(door: Door) -> None:
    response = door.client.post(
        PATH,
        headers=sign(BODY),
        environ_overrides={"wsgi.input": endless(), "wsgi.input_terminated": True},
    )
    assert response.status_code == 413


def test_a_body_whose_framing_breaks_is_answered_400(door: Door) -> None:
    class Broken(io.RawIOBase):
        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            raise OSError("bad chunk")

    response = door.client.post(
        PATH,
        headers=sign(BODY),
        environ_overrides={"wsgi.input": Broken(), "wsgi.input_terminated": True},
    )
    assert response.status_code == 400


@pytest.mark.parametrize("coding", ["gzip", "br", "zstd", "deflate", "gzip, identity", "x"])
def test_a_compressed_body_is_refused(door: Door, coding: str) -> None:
    response = door.post(content_encoding=coding)
    assert (response.status_code, response.data) == (415, b"unsupported media type")
    assert door.kept() == []


@pytest.mark.parametrize("coding", ["identity", "Identity"])
def test_a_body_that_says_it_is_not_compressed_is_kept(door: Door, coding: str) -> None:
    assert door.post(content_encoding=coding).status_code == 200


def test_a_disk_that_fails_is_answered_503_and_the_next_delivery_200(door: Door) -> None:
    door.disk.failing = True
    response = door.post()
    assert (response.status_code, response.data) == (503, b"unavailable")
    assert dict(response.headers) == {
        "content-type": TEXT,
        "retry-after": "5",
        "Content-Length": "11",
    }
    door.disk.failing = False
    assert door.post(webhook_id="evt_2").status_code == 200
    door.close()
    assert read_counts(door.spool).refused == {"spool_failed": 1}
    assert read_counts(door.spool).accepted == 1


def test_after_closing_a_delivery_is_answered_503(door: Door) -> None:
    door.close()
    assert door.post().status_code == 503


def test_a_disk_that_does_not_answer_is_answered_503_in_time(tmp_path: Path) -> None:
    class StuckDisk(Disk):
        gate = threading.Event()

        def fdatasync(self, descriptor: int) -> None:
            assert self.gate.wait(10)
            super().fdatasync(descriptor)

    door = Door(tmp_path)
    disk = StuckDisk()
    app = create_app(door.settings, disk=disk, clock=SetClock(), wait_for_disk_s=0.05)
    response = app.test_client().post(PATH, data=BODY, headers=sign(BODY))
    assert response.status_code == 503
    disk.gate.set()
    app.extensions[INTAKE_KEY].close()
    # It became durable after all, which is harmless: the sender comes again with the same id.
    assert len(door.kept()) == 1


def test_an_error_of_ours_is_answered_503_and_logged_without_its_text(
    door: Door, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_args: object) -> None:
        raise RuntimeError("with parts of a body")

    monkeypatch.setattr(door.app.extensions[INTAKE_KEY], "take", fail)
    with caplog.at_level(logging.WARNING, logger="receiver"):
        assert door.post().status_code == 503
    assert caplog.messages == [
        "event=refused status=503 reason='unexpected' id='evt_1' detail='RuntimeError'"
    ]


def test_a_refusal_that_cannot_be_counted_is_answered_all_the_same(
    door: Door, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_args: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(door.app.extensions[INTAKE_KEY], "count_refused", fail)
    with caplog.at_level(logging.WARNING, logger="receiver"):
        response = door.post(webhook_id="")
    assert (response.status_code, response.data) == (401, b"unauthorized")
    assert caplog.messages == ["event=refusal_not_counted error='RuntimeError'"]


def test_a_server_that_can_wait_gets_the_future_and_wakes_the_writer(door: Door) -> None:
    intake = door.app.extensions[INTAKE_KEY]
    assert door.post().status_code == 200
    # The writer runs, and waits to be woken.
    wait_until(lambda: intake._writer._queue._changed._waiters, "the writer")
    prepared = Prepared(intake.check_head(sign(BODY, {"webhook_id": "evt_2"})), BODY)
    response = door.client.post(PATH, environ_overrides={PREPARED_KEY: prepared})
    assert response.status_code == 200
    with pytest.raises(TimeoutError):
        prepared.taken.result(0.1)
    intake.wake()
    prepared.taken.result(10)
    assert [delivery.webhook_id for delivery in door.kept()] == ["evt_1", "evt_2"]


def test_what_a_server_prepared_is_taken_only_if_it_is_signed(door: Door) -> None:
    signed = door.app.extensions[INTAKE_KEY].check_head(sign(BODY))
    prepared = Prepared(signed, BODY + b" ")
    response = door.client.post(PATH, environ_overrides={PREPARED_KEY: prepared})
    assert (response.status_code, prepared.taken) == (401, None)
    assert door.kept() == []


@pytest.mark.parametrize("method", ["get", "put", "delete", "patch", "options", "head", "trace"])
def test_other_methods_are_answered_405(door: Door, method: str) -> None:
    response = door.client.open(PATH, method=method.upper())
    assert response.status_code == 405
    assert response.headers["Allow"] == "POST"


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/webhooks",
        PATH + "/",
        "/" + PATH,
        PATH.upper(),
        PATH + "/x",
        "/%00",
        "/healthz/",
        "/static/x",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_other_paths_are_answered_404_and_never_redirected(
    door: Door, path: str, method: str
) -> None:
    response = door.client.open(path, method=method)
    assert (response.status_code, response.data) == (404, b"not found")


def test_health_is_a_constant(door: Door) -> None:
    door.disk.failing = True
    door.post()
    response = door.client.get("/healthz")
    assert (response.status_code, response.data) == (200, b"ok")


def test_readiness_follows_the_disk_and_tells_no_more(door: Door) -> None:
    assert (door.client.get("/readyz").status_code, door.client.get("/readyz").data) == (200, b"ok")
    door.disk.failing = True
    door.post()
    response = door.client.get("/readyz")
    assert (response.status_code, response.data) == (503, b"unavailable")
    door.disk.failing = False
    door.post()
    assert door.client.get("/readyz").status_code == 200


def test_it_does_not_start_without_a_secret(tmp_path: Path) -> None:
    settings = Settings(spool=SpoolSettings(path=tmp_path / "spool"))
    with pytest.raises(ConfigurationError, match=r"^receiver\.webhook_secret is not set; "):
        create_app(settings)


@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, os.strerror(errno.EIO)), SpoolError("[Errno 5] of a spool")]
)
def test_a_spool_that_cannot_be_used_ends_only_an_application_that_needs_it(
    tmp_path: Path,
    error: Exception,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    door = Door(tmp_path)

    def fail(_spool: Spool) -> None:
        raise error

    monkeypatch.setattr(Spool, "create", fail)
    with pytest.raises(type(error)):
        create_app(door.settings)
    with caplog.at_level(logging.ERROR, logger="receiver"):
        app = create_app(door.settings, needs_spool=False)
    assert caplog.messages == [f"event=spool_not_ready error='{error}'"]
    app.extensions[INTAKE_KEY].close()
    door.close()


def log_of(door: Door, caplog: pytest.LogCaptureFixture, act: Callable[[], object]) -> list[str]:
    with caplog.at_level(logging.INFO, logger="receiver"):
        act()
    return caplog.messages


def test_a_refusal_is_one_log_line_with_reason_and_age(
    door: Door, caplog: pytest.LogCaptureFixture
) -> None:
    lines = log_of(door, caplog, lambda: door.post(webhook_timestamp=str(NOW_S - 4000)))
    [line] = lines
    assert line == (
        "event=refused status=401 reason='stale' id='evt_1' "
        "detail='signed 4000 s ago, tolerance is 300 s'"
    )
    door.close()
    assert read_counts(door.spool).clock_skew_s == 4000


def test_no_id_can_forge_a_log_line(door: Door, caplog: pytest.LogCaptureFixture) -> None:
    forged = "a\x1b[31m' level=ERROR\u2028é" + "b" * 100
    environ = {"HTTP_WEBHOOK_ID": forged.encode().decode("latin-1")}
    lines = log_of(
        door, caplog, lambda: door.client.post(PATH, headers=sign(BODY), environ_overrides=environ)
    )
    [line] = lines
    assert line.isascii()
    assert line.isprintable()
    assert line.startswith("event=refused status=401 reason='bad_id' id=\"a\\x1b[31m' level=ERROR")
    assert "b" * 60 not in line


def test_the_log_says_once_which_key_matched(door: Door, caplog: pytest.LogCaptureFixture) -> None:
    def act() -> None:
        for _ in range(3):
            door.post()
        door.close()

    assert log_of(door, caplog, act) == ["event=key_matched key='bffcb3:base64'"]
    assert read_counts(door.spool).matched == {"bffcb3:base64": 3}


def test_neither_log_nor_spool_nor_counts_hold_the_secret(
    door: Door, caplog: pytest.LogCaptureFixture
) -> None:
    def act() -> None:
        door.post()
        door.post(webhook_signature="v1,AAAA")
        door.post(BODY + b"x", signed=BODY)
        door.close()

    text = "\n".join(log_of(door, caplog, act)).encode()
    for path in door.spool.path.rglob("*"):
        text += path.read_bytes() if path.is_file() else b""
    assert SECRET.removeprefix("whsec_").encode() not in text
    assert RAW_KEY not in text
    assert base64.b64encode(RAW_KEY) not in text
