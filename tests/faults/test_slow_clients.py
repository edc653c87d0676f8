"""Two hundred clients that dawdle hold up nobody, and each is cut by a deadline.

`TORTURE_SLOW_ROUNDS` sets how often all two hundred come.
"""

from __future__ import annotations

import selectors
import socket
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from serving import BODY, PATH, Server, head, running, sealed_ids, sign
from sizes import size

ROUNDS = size("SLOW_ROUNDS", usual=3, torture=100)
COUNT = 200
DEADLINE_S = 2.0
# What a busy machine may add to a deadline before we call it missed.
PATIENCE_S = 10.0
P99_S = 0.1
SHORT_HEADER_DEADLINE = (
    f"import receiver.server as served; served.HEADER_TIMEOUT_MS = {int(DEADLINE_S * 1000)}"
)


@dataclass
class SlowClient:
    """A connection that sends the start of a request, and then the rest a byte a second."""

    kind: str
    connection: socket.socket
    rest: bytes
    opened_at_s: float
    next_byte_at_s: float
    answer: bytes = b""
    cut_after_s: float | None = None

    def send_when_due(self) -> None:
        if not self.rest or time.monotonic() < self.next_byte_at_s:
            return
        self.next_byte_at_s += 1
        try:
            self.connection.send(self.rest[:1])
        except OSError:
            self.end()
        self.rest = self.rest[1:]

    def receive(self) -> None:
        try:
            received = self.connection.recv(4096)
        except OSError:  # a reset: it sent on after the end
            received = b""
        self.answer += received
        if not received:
            self.end()

    def end(self) -> None:
        self.cut_after_s = time.monotonic() - self.opened_at_s


def requests() -> list[tuple[str, bytes, bytes]]:
    """Give each kind of slow client: its name, what it sends at once, and what a byte a second."""
    whole = head(f"content-length: {len(BODY)}", webhook_id="evt_slow")
    endless = head("transfer-encoding: chunked", webhook_id="evt_slow")
    return [
        ("headers, then nothing", whole, b""),
        ("no byte at all", b"", b""),
        ("headers, a byte a second", b"", whole),
        ("headers, then nothing", whole + BODY[:1], b""),
        ("no byte at all", b"", b""),
        ("a body, a byte a second", whole, BODY),
        ("headers, then nothing", endless, b""),
        ("no byte at all", b"", b""),
        ("chunks, a byte a second", endless, b"29\r\n" + BODY),
    ]


def open_clients(server: Server) -> list[SlowClient]:
    kinds = requests()
    clients = []
    for number in range(COUNT):
        kind, at_once, rest = kinds[number % len(kinds)]
        connection = server.open_socket(at_once)
        connection.setblocking(False)
        now_s = time.monotonic()
        clients.append(SlowClient(kind, connection, rest, now_s, now_s + 1))
    return clients


def serve_clients(clients: list[SlowClient], between: Callable[[], None]) -> None:
    """Let all clients dawdle until the last is cut; call `between` all the while."""
    until_s = time.monotonic() + DEADLINE_S + PATIENCE_S
    with selectors.DefaultSelector() as selector:
        for client in clients:
            selector.register(client.connection, selectors.EVENT_READ, client)
        while selector.get_map():
            assert time.monotonic() < until_s, "a slow client is never cut"
            for key, _ in selector.select(0):
                key.data.receive()
            for client in [key.data for key in selector.get_map().values()]:
                client.send_when_due()
                if client.cut_after_s is not None:
                    selector.unregister(client.connection)
                    client.connection.close()
            between()


class HealthyClient:
    """Sends one delivery at a time; remembers how long each took, and which got its 200."""

    def __init__(self, server: Server) -> None:
        self.took_s: list[float] = []
        self.acknowledged: set[str] = set()
        self._connection = server.connect()

    def send(self) -> None:
        webhook_id = f"evt_{len(self.took_s)}"
        began_at_s = time.monotonic()
        self._connection.request("POST", PATH, BODY, sign(BODY, webhook_id))
        response = self._connection.getresponse()
        answer = response.read()
        self.took_s.append(time.monotonic() - began_at_s)
        assert (response.status, answer) == (200, b"ok")
        self.acknowledged.add(webhook_id)

    def close(self) -> None:
        self._connection.close()


def p99(values: list[float]) -> float:
    return statistics.quantiles(values, n=100)[98]


def test_two_hundred_slow_clients_hold_up_nobody_and_are_cut(tmp_path: Path) -> None:
    with running(
        tmp_path, patch=SHORT_HEADER_DEADLINE, RECEIVER__BODY_TIMEOUT_S=str(DEADLINE_S)
    ) as server:
        server.wait_until_up()
        healthy = HealthyClient(server)
        found = []
        for _ in range(ROUNDS):
            already = len(healthy.took_s)
            clients = open_clients(server)
            serve_clients(clients, healthy.send)
            found.append(p99(healthy.took_s[already:]))
            check_cuts(clients)
        healthy.close()
        figures = ", ".join(f"{value * 1000:.1f}" for value in found)
        print(f"{len(healthy.took_s)} healthy requests, p99 of each round in ms: {figures}")
        # A noisy machine may spoil one round, but hardly most of them.
        assert statistics.median(found) < P99_S
        assert server.stop() == 0
        # Nothing of the slow ones is kept, and all of the healthy one.
        assert sealed_ids(server.spool) == dict.fromkeys(healthy.acknowledged, 1)


def check_cuts(clients: list[SlowClient]) -> None:
    first_cut_at_s = min(client.opened_at_s + client.cut_after_s for client in clients)
    assert clients[-1].opened_at_s < first_cut_at_s, "they were not all there at once"
    kinds = sorted({client.kind for client in clients})
    for kind in kinds:
        cuts = [client.cut_after_s for client in clients if client.kind == kind]
        answers = {client.answer.split(b"\r\n")[0] for client in clients if client.kind == kind}
        print(f"{len(cuts)} of '{kind}' cut after {min(cuts):.1f} to {max(cuts):.1f} s: {answers}")
        assert answers <= {b"", b"HTTP/1.1 408 Request Timeout"}
    assert all(client.cut_after_s > DEADLINE_S / 2 for client in clients)
