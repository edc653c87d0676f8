"""No secret is anywhere but where it was configured: every byte that we write is searched."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import BODY, OTHER_SECRET, RAW_KEY, SECRET, head, running
from spooling import fill_spool, sample_event

from receiver.app import create_app
from receiver.config import ReceiverSettings, Settings, SpoolSettings
from receiver.errors import ConfigurationError
from receiver.signature import derive_keys

ROOT = Path(__file__).parent.parent
PASSWORD = "correct-horse-battery-staple"


def forms(secret: str) -> Iterator[bytes]:
    """Give a secret as it could leak: whole, without its prefix, decoded, and encoded anew."""
    text = secret.removeprefix("whsec_")
    raw = base64.b64decode(text)
    yield text.encode()
    yield raw
    yield raw.hex().encode()
    yield base64.b64encode(text.encode())
    yield base64.urlsafe_b64encode(raw)
    yield repr(raw)[2:-1].encode()
    yield json.dumps(raw.decode("latin-1"))[1:-1].encode()


def leaks(data: bytes, *secrets: str) -> list[bytes]:
    return [form for secret in secrets for form in forms(secret) if form in data]


def every_file(root: Path) -> Iterator[tuple[Path, bytes]]:
    for path in sorted(root.rglob("*")):
        if path.is_file():
            yield path, path.read_bytes()


def test_the_search_finds_each_form() -> None:
    assert RAW_KEY in list(forms(SECRET))
    for form in forms(SECRET):
        assert leaks(b"x" + form + b"y", SECRET)


def test_a_receiver_writes_its_secrets_nowhere(tmp_path: Path) -> None:
    secrets = f"{SECRET},{OTHER_SECRET}"
    with running(tmp_path, RECEIVER__WEBHOOK_SECRET=secrets) as server:
        server.wait_until_up()
        assert server.post()[0] == 200
        # A sender that puts the secret into what it sends must not get it into a log.
        for text in (SECRET, SECRET.removeprefix("whsec_")):
            head_of = head(f"webhook-signature: v1,{text}", f"x-secret: {text}", f"cookie: {text}")
            assert server.send(head_of + BODY).startswith(b"HTTP/1.1 4")
            request = f"POST /webhooks/midbound?key={text} HTTP/1.1\r\nhost: x\r\n\r\n"
            assert server.send(request.encode()).startswith(b"HTTP/1.1 4")
        pids = [server.process.pid, *server.workers()]
        arguments = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids]
        assert server.stop() == 0
    assert len(arguments) > 1
    for data in arguments:
        assert data  # a process that has ended has none
        assert leaks(data, SECRET, OTHER_SECRET) == []
    for path, data in every_file(tmp_path):
        assert leaks(data, SECRET, OTHER_SECRET) == [], path


def test_only_the_listed_headers_are_stored(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        server.wait_until_up()
        request = head(
            f"content-length: {len(BODY)}",
            "authorization: Bearer of-a-proxy",
            "cookie: session=of-somebody",
            "x-forwarded-for: 192.0.2.7",
        )
        assert server.send(request + BODY).startswith(b"HTTP/1.1 200 ")
        assert server.stop() == 0
        (path,) = server.spool.ready_segments()
    line = json.loads(path.read_bytes().splitlines()[0])
    assert list(line) == [
        "v", "n", "webhook_id", "webhook_timestamp", "webhook_signature", "received_at",
        "event", "crc32",
    ]  # fmt: skip
    for found, data in every_file(tmp_path):
        for value in (b"of-a-proxy", b"of-somebody", b"192.0.2.7"):
            assert value not in data, found


def test_no_repr_and_no_error_shows_a_secret(tmp_path: Path) -> None:
    settings = Settings(
        spool=SpoolSettings(path=tmp_path / "spool"),
        receiver=ReceiverSettings(webhook_secret=(SECRET,)),
    )
    app = create_app(settings)
    shown = [repr(settings), repr(settings.receiver), repr(settings.keys()), repr(app)]
    shown += [repr(vars(app)), repr(app.extensions), repr(app.config), str(derive_keys([SECRET]))]
    assert leaks("\n".join(shown).encode(), SECRET) == []
    for wrong in (SECRET[:12], SECRET + "ö"):
        with pytest.raises(ConfigurationError) as caught:
            derive_keys([wrong])
        assert wrong not in str(caught.value)
        assert wrong.removeprefix("whsec_") not in str(caught.value)


def test_a_load_writes_secrets_and_credentials_nowhere(tmp_path: Path) -> None:
    """A load that works and one that fails, with the secrets of both processes beside them."""
    fill_spool(tmp_path / "spool", [("evt_1", json.dumps(sample_event()).encode())])
    secrets = tmp_path / ".dlt" / "secrets.toml"
    secrets.parent.mkdir()
    secrets.write_text(f'[receiver]\nwebhook_secret = "{SECRET}"\n')
    outputs = [run(tmp_path, "load"), run(tmp_path, "status")]
    # Nobody listens there: the error must not show the password.
    unreachable = {
        "DESTINATION__WAREHOUSE__DESTINATION_TYPE": "postgres",
        "DESTINATION__WAREHOUSE__CREDENTIALS": f"postgresql://loader:{PASSWORD}@127.0.0.1:1/x",
    }
    fill_spool(tmp_path / "spool", [("evt_2", b"{}")])
    outputs += [run(tmp_path, "load", **unreachable), run(tmp_path, "status", **unreachable)]
    assert any(b"127.0.0.1" in output for output in outputs), "the failure has not been tried"
    written = [data for path, data in every_file(tmp_path) if path != secrets]
    for data in [*outputs, *written]:
        assert leaks(data, SECRET) == []
        assert PASSWORD.encode() not in data


def run(root: Path, verb: str, **environ: str) -> bytes:
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.cli", verb],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environ,
        check=False,
        capture_output=True,
        timeout=120,
    )
    assert b"Traceback" not in done.stderr, done.stderr
    return done.stdout + done.stderr
