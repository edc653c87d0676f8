"""Every invalid request that gunicorn's own tests have: none is taken, and none does harm.

Only gunicorn's source distribution holds them; `make test` fetches it, pinned and hashed, beside
the installed packages. Each request is sent as it is, and once more with its target and its headers
joined by those of a delivery signed over the body that it seems to carry, so that the signature
alone does not keep it out.
"""

from __future__ import annotations

import contextlib
import re
import sys
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from serving import BODY, PATH, Server, running, sealed_deliveries, sign

SOURCES = Path(sys.prefix) / "sources"
BODY_TIMEOUT_S = "2"
PATIENCE_S = 5.0  # longer than the receiver waits for a body, on a slow machine too
AT_ONCE = 16  # most of the time is spent waiting for bodies that never come
_ESCAPES = {rb"\r": b"\r", rb"\n": b"\n", rb"\t": b"\t", rb"\0": b"\0"}
_CHUNK = re.compile(rb"[^\r\n]+\r\n([^\r\n]+)\r\n")
_POST = re.compile(rb"POST \S+ HTTP/1\.[01]\r\n")
_ESCAPE = re.compile(rb"\\(?:x[0-9a-fA-F]{2}|[rnt0])")


def read_requests() -> dict[str, bytes]:
    """Give each request by its name; in their files the line ends are written out as escapes."""
    requests: dict[str, bytes] = {}
    for path in SOURCES.glob("gunicorn-*.tar.gz"):
        with tarfile.open(path) as archive:
            for member in archive:
                if re.search(r"/requests/invalid/.*\.http\Z", member.name):
                    text = archive.extractfile(member).read().replace(b"\n", b"")
                    requests[Path(member.name).stem] = _ESCAPE.sub(_unescape, text)
    return requests


def _unescape(found: re.Match[bytes]) -> bytes:
    escape = found[0]
    return bytes([int(escape[2:], 16)]) if escape[1:2] == b"x" else _ESCAPES[escape]


REFUSALS = {"", "400", "401", "404", "408", "431"}  # the first: closed without an answer
# What is wrong with these leaves the body whole, as its signature proves: a length beside the
# chunks, which RFC 9112 (6.3) lets a server ignore if it closes the connection afterwards; a header
# spelled with an underscore, which is none of ours; a space beside the last chunk's size.
WHOLE = {
    f"{name}, signed"
    for name in (
        "chunked_02", "rfc9112_smuggle_cl_te_chunked_01", "chunked_07", "chunked_09", "chunked_10",
    )
}  # fmt: skip
REQUESTS = read_requests()
pytestmark = pytest.mark.skipif(not REQUESTS, reason=f"needs gunicorn's sources in {SOURCES}")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("raw"), RECEIVER__BODY_TIMEOUT_S=BODY_TIMEOUT_S) as server:
        server.wait_until_up()
        yield server


def signed(raw: bytes) -> bytes:
    """Make a delivery of it: what is invalid in the headers or the framing stays."""
    line, end, rest = raw.partition(b"\r\n")
    body = rest.partition(b"\r\n\r\n")[2]
    if b"chunked" in raw.lower():
        body = b"".join(_CHUNK.findall(body))
    headers = b"".join(
        b"%b: %b\r\n" % (name.encode(), value.encode()) for name, value in sign(body).items()
    )
    version = line.rpartition(b" ")[2]
    return b"POST %b %b" % (PATH.encode(), version) + end + headers + rest


def answer(server: Server, request: bytes) -> bytes:
    """Give the first status line; nothing if the server closes without one, or waits for more."""
    with contextlib.suppress(OSError), server.open_socket(request) as connection:
        connection.settimeout(PATIENCE_S)
        return connection.makefile("rb").readline()
    return b""


def test_no_invalid_request_is_taken_or_does_harm(server: Server) -> None:
    assert len(REQUESTS) >= 75
    requests = REQUESTS | {
        f"{name}, signed": signed(raw) for name, raw in REQUESTS.items() if _POST.match(raw)
    }
    with ThreadPoolExecutor(AT_ONCE) as pool:
        lines = pool.map(lambda request: answer(server, request), requests.values())
        answers = dict(zip(requests, lines, strict=True))
    statuses = {name: line[9:12].decode() for name, line in answers.items()}
    print({status: [*statuses.values()].count(status) for status in {*statuses.values()}})
    assert {name for name, status in statuses.items() if status not in REFUSALS} == WHOLE
    # All of its processes live on, and nothing of all that is in its spool.
    assert [server.post(number) for number in range(10)] == [(200, b"ok")] * 10
    assert "Traceback" not in server.log()
    assert server.stop() == 0
    bodies = [each.body for each in sealed_deliveries(server.spool.ready_segments())]
    assert sorted(bodies) == sorted([BODY] * 10 + [b"hello world"] * 2 + [b"hello"] * 2 + [b""])
