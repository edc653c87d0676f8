"""A hundred thousand hostile requests: no 500, nothing unsigned stored, nothing signed lost.

They go through the whole of the receiver but the server's own parser, which `test_server` meets
over sockets. Half are any bytes, half are a correctly signed request with up to three changes. What
is answered 200 is signed anew here, and must be in the spool, byte for byte, and nothing else.
`TORTURE_FUZZED_REQUESTS` sets the number.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import logging
import random
import re
import resource
from collections import Counter
from pathlib import Path

import pytest
from serving import PATH, RAW_KEY, SECRET, sealed_deliveries, sign
from sizes import LIMIT_S, size

from receiver.config import ReceiverSettings, Settings, SpoolSettings
from receiver.segment import Spool
from receiver.server import Front

REQUESTS = size("FUZZED_REQUESTS", usual=100_000, torture=5_000_000)
SEED = random.SystemRandom().randrange(2**32)
AT_ONCE = 500
MAX_BODY_BYTES = 5000
GROWTH_BYTES = 64 << 20
ANSWERS = {200, 400, 401, 404, 405, 408, 413, 415, 503}
Headers = list[tuple[str, str]]


_VISIBLE = re.compile(r"[\t -~]*")


class Scope:
    """What Granian tells of a request."""

    def __init__(self, method: str, path: str, query: str, headers: Headers) -> None:
        self.method = method
        self.path = path
        self.query_string = query
        self.scheme = "http"
        self.headers = self
        self._items = headers

    def items(self) -> Headers:
        # As Granian does, which leaves out every value that is not visible ASCII.
        return [(name, value) for name, value in self._items if _VISIBLE.fullmatch(value)]

    def __contains__(self, name: str) -> bool:
        return any(name == other for other, _ in self._items)


class Exchange:
    """Granian's two ends of a request."""

    def __init__(self, body: bytes) -> None:
        self.body = body
        self.answers: list[tuple[int, Headers, bytes]] = []
        self.is_unchanged = False  # signed correctly, and left as it was

    async def __call__(self) -> bytes:
        return self.body

    def __aiter__(self):
        return self._pieces()

    async def _pieces(self):
        for start in range(0, len(self.body), 700):
            yield self.body[start : start + 700]

    def response_bytes(self, status: int, headers: Headers, body: bytes) -> None:
        self.answers.append((status, headers, body))


class Fuzzer:
    """Makes requests of any bytes, and changes of good ones."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)
        self._number = 0

    def request(self) -> tuple[Scope, Exchange]:
        chance = self._chance
        self._number += 1
        body = self._bytes(chance.choice([0, 10, 200, 1000]))
        if chance.random() < 0.01:
            body = self._bytes(MAX_BODY_BYTES + chance.randrange(-3, 4))
        headers = list(sign(body, f"evt_{self._number}").items())
        method, path, query = "POST", PATH, ""
        if chance.random() < 0.5:
            headers.append(("content-length", str(len(body))))
        if chance.random() < 0.5:  # any bytes, rather than a change
            headers = [(self._name(), self._text()) for _ in range(chance.randrange(8))]
            is_unchanged = False
        else:
            count = chance.choice([0, 1, 1, 1, 2, 3])
            is_unchanged = count == 0 and len(body) <= MAX_BODY_BYTES
            for _ in range(count):
                headers, body = self._change(headers, body)
        if chance.random() < 0.05:
            is_unchanged = False
            method = chance.choice(["GET", "HEAD", "PUT", "OPTIONS", "DELETE", self._text()])
        if chance.random() < 0.05:
            is_unchanged = False
            path = chance.choice(["/", "/healthz", "/readyz", PATH + "/", "/" + self._text()])
            query = self._text()
        exchange = Exchange(body)
        exchange.is_unchanged = is_unchanged
        return Scope(method, path, query, headers), exchange

    def _change(self, headers: Headers, body: bytes) -> tuple[Headers, bytes]:
        chance = self._chance
        at = chance.randrange(len(headers)) if headers else 0
        kind = chance.randrange(8)
        if kind == 0 and body:
            spot = chance.randrange(len(body))
            body = body[:spot] + bytes([body[spot] ^ 1 << chance.randrange(8)]) + body[spot + 1 :]
        elif kind == 1:
            body = body[: chance.randrange(len(body) + 1)] + self._bytes(chance.randrange(3))
        elif kind == 2 and headers:
            name, value = headers[at]
            headers = [*headers[:at], (name, self._spoil(value)), *headers[at + 1 :]]
        elif kind == 3 and headers:
            headers = headers[:at] + headers[at + 1 :]
        elif kind == 4 and headers:
            headers = [*headers, (headers[at][0], self._text())]
        elif kind == 5:
            encoding = chance.choice(["gzip", "br", "identity", "zstd, gzip", self._text()])
            headers = [*headers, ("content-encoding", encoding)]
        elif kind == 6:
            length = chance.choice(["-1", "1e3", "9" * 30, "+5", "", "٣", str(len(body) + 1)])
            headers = [*headers, ("content-length", length)]
        else:
            headers = [*headers, (self._name(), self._text())]
        return headers, body

    def _spoil(self, value: str) -> str:
        chance = self._chance
        spot = chance.randrange(len(value) + 1)
        odd = chance.choice(["", " ", ",", "\x00", "é", "=", "\u2028", "v1,", "0", value])
        return value[:spot] + odd + value[spot + chance.randrange(2) :]

    def _name(self) -> str:
        known = ["webhook-id", "webhook-timestamp", "webhook-signature", "content-length",
                 "content-encoding", "transfer-encoding", "content-type", "host"]  # fmt: skip
        return self._chance.choice([*known, self._text().lower() or "x"])

    def _text(self) -> str:
        return self._bytes(self._chance.choice([0, 1, 5, 40, 400])).decode("latin-1")

    def _bytes(self, count: int) -> bytes:
        return self._chance.randbytes(count)


@pytest.mark.timeout(LIMIT_S)
def test_no_request_of_a_hundred_thousand_does_harm(tmp_path: Path) -> None:
    print(f"seed {SEED}")
    logging.getLogger("receiver").setLevel(logging.CRITICAL)
    spool = Spool(tmp_path / "spool")
    settings = Settings(
        spool=SpoolSettings(path=spool.path, min_free_bytes=0),
        receiver=ReceiverSettings(webhook_secret=(SECRET,), max_body_bytes=MAX_BODY_BYTES),
    )
    try:
        answers, taken, growth = asyncio.run(attack(Front(settings), Fuzzer(SEED)))
    finally:
        logging.getLogger("receiver").setLevel(logging.NOTSET)
    print(f"{REQUESTS} requests: {dict(answers)}; {growth / 2**20:.0f} MiB more memory")
    assert set(answers) <= ANSWERS
    assert answers[200] > REQUESTS / 100, "the good ones are not taken, so nothing was proven"
    stored = sealed_deliveries(spool.ready_segments())
    assert Counter((each.webhook_id, each.body) for each in stored) == taken
    assert growth < GROWTH_BYTES


async def attack(front: Front, fuzzer: Fuzzer) -> tuple[Counter[int], Counter, int]:
    """Send all, some at once; give the answers, what was answered 200, and the memory's growth."""
    loop = asyncio.get_running_loop()
    front.__rsgi_init__(loop)
    answers: Counter[int] = Counter()
    taken: Counter[tuple[str, bytes]] = Counter()
    before = 0
    for start in range(0, REQUESTS, AT_ONCE):
        pairs = [fuzzer.request() for _ in range(min(AT_ONCE, REQUESTS - start))]
        await asyncio.gather(*(front.__rsgi__(*pair) for pair in pairs))
        for scope, exchange in pairs:
            ((status, headers, _),) = exchange.answers
            answers[status] += 1
            assert status == 200 or not exchange.is_unchanged, (status, scope.items())
            assert status != 503 or ("retry-after", "5") in headers
            if status == 200 and scope.path == PATH:
                taken[dict(scope.items())["webhook-id"], exchange.body] += 1
                check_signature(scope, exchange)
        if start == AT_ONCE * 10:
            before = peak_bytes()
    growth = peak_bytes() - before
    front.__rsgi_del__(loop)
    return answers, taken, growth


def check_signature(scope: Scope, exchange: Exchange) -> None:
    """Sign what was taken ourselves: the header must hold exactly that digest."""
    headers = dict(scope.items())
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + exchange.body
    digests = [
        base64.b64encode(hmac.digest(key, signed, "sha256")).decode()
        for key in (RAW_KEY, SECRET.removeprefix("whsec_").encode())
    ]
    entries = headers["webhook-signature"].split(" ")
    assert any(f"v1,{digest}" in entries for digest in digests), headers


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
