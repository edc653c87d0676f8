"""The receiver answers as `deploy/openapi.yaml` says, to all that schemathesis makes of it.

Every request goes to the real server: as schemathesis made it, which nobody has signed, and once
more with a signature over the body that it sent.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis import Case
from serving import LIMIT_BYTES, PATH, Server, running, sealed_ids, sign

from receiver.app import answer

described = schemathesis.openapi.from_path(Path(__file__).parents[1] / "deploy" / "openapi.yaml")
attacked = settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


# One for each operation: what is stopped to look into its spool can answer nobody afterwards.
@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with running(tmp_path) as server:
        server.wait_until_up()
        yield server
        assert "Traceback" not in server.log()


@pytest.fixture
def acknowledged(server: Server) -> Iterator[set[str]]:
    ids: set[str] = set()
    yield ids
    assert len(ids) > 10, "hardly anything was taken, so nothing was proven"
    server.stop()
    # All that was signed, once, and nothing else.
    assert sealed_ids(server.spool) == dict.fromkeys(ids, 1)


@described.exclude(path=PATH).parametrize()
@attacked
def test_whoever_asks_is_answered_as_described(case: Case, server: Server) -> None:
    case.call_and_validate(f"http://127.0.0.1:{server.port}")


@described.include(path=PATH).parametrize()
@attacked
def test_deliveries_are_answered_as_described(
    case: Case, server: Server, acknowledged: set[str]
) -> None:
    unsigned = case.call_and_validate(f"http://127.0.0.1:{server.port}")
    assert unsigned.status_code != 200
    if case.method == "POST":
        body = unsigned.request.body or b""
        body = body.encode() if isinstance(body, str) else body
        post_signed(server, body, acknowledged)


def post_signed(server: Server, body: bytes, acknowledged: set[str]) -> None:
    webhook_id = f"evt_{len(acknowledged)}"
    connection = server.connect()
    connection.request("POST", PATH, body, sign(body, webhook_id))
    response = connection.getresponse()
    given = response.status, response.read()
    connection.close()
    if len(body) > LIMIT_BYTES:
        assert given == (413, b"content too large")
    else:
        assert given == (200, b"ok")
        acknowledged.add(webhook_id)


def test_the_description_knows_every_path_and_every_text() -> None:
    document = described.raw_schema
    assert set(document["paths"]) == {PATH, "/healthz", "/readyz"}
    statuses = {
        int(status)
        for operations in document["paths"].values()
        for operation in operations.values()
        for status in operation["responses"]
    }
    assert statuses == {200, 400, 401, 408, 413, 415, 503}
    texts = [
        text
        for response in document["components"]["responses"].values()
        for text in response["content"]["text/plain"]["schema"]["enum"]
    ]
    assert sorted(texts) == sorted(answer(status).body.decode() for status in statuses)
