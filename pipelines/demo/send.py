"""Sign deliveries and post them to a receiver, over a few connections at once.

A `Plan` says what is sent; `post_all` sends it and counts what was answered. Nothing is
sent twice behind the caller's back, so the answers are the whole story.
"""

from __future__ import annotations

import argparse
import http.client
import math
import random
import ssl
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from urllib.parse import SplitResult, urlsplit

from pipelines.demo.generate import GeneratedEvent, generate_events, sample_event
from pipelines.demo.sign import Derivation, sign
from pipelines.exit_codes import ExitCode
from pipelines.text_table import show_count
from receiver.config import ReceiverSettings, Settings
from receiver.errors import ConfigurationError

TIMEOUT_S = 30.0
# A receiver ends idle connections after 10 s; what is sent on one at that moment gets no answer.
REUSE_WITHIN_S = 5.0
WEBHOOK_PATH = "/webhooks/midbound"


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One request to send: an event, and whether its signature is to be wrong."""

    event: GeneratedEvent
    is_forged: bool = False


@dataclass(slots=True)
class Answers:
    """What came back: how often each status, how long it took, for which events."""

    statuses: Counter[int] = field(default_factory=Counter)
    latencies_s: list[float] = field(default_factory=list)
    accepted_ids: list[str] = field(default_factory=list)
    unanswered_count: int = 0
    first_error: str = ""  # why the first of these got no answer

    def describe(self) -> str:
        """Say it in one line."""
        counts = [f"{count} answered {status}" for status, count in sorted(self.statuses.items())]
        if self.unanswered_count:
            counts.append(f"{self.unanswered_count} without an answer")
        if len(self.latencies_s) > 1:
            percentiles = statistics.quantiles(self.latencies_s, n=100)
            half_ms, most_ms = percentiles[49] * 1000, percentiles[98] * 1000
            counts.append(f"half within {half_ms:.1f} ms, 99 % within {most_ms:.1f} ms")
        return ", ".join(counts) or "nothing was sent"


def plan(
    events: Iterable[GeneratedEvent], *, repeat_share: float, bad_share: float, seed: int
) -> Iterator[Delivery]:
    """Send each event once, some of them again later, and some forgeries in between."""
    chance = random.Random(seed)
    sent: list[GeneratedEvent] = []
    for event in events:
        yield Delivery(event=event)
        sent.append(event)
        if chance.random() < repeat_share:
            yield Delivery(event=chance.choice(sent))
        if chance.random() < bad_share:
            yield Delivery(event=event, is_forged=True)


class Sender:
    """Post deliveries to one address; several connections may share it."""

    def __init__(
        self,
        url: str,
        secret: str,
        *,
        derivation: Derivation = "base64",
        connections: int = 4,
        rate: float = 0.0,
    ) -> None:
        self._address = _split_url(url)
        self._target = _request_target(self._address)
        self._secret = secret
        self._derivation = derivation
        self._connections = connections
        self._interval_s = 1 / rate if rate else 0.0
        self.reuse_within_s = REUSE_WITHIN_S
        self._answers = Answers()
        # Two locks: who waits for the next delivery to be due must not hold up an answer.
        self._todo_lock = threading.Lock()
        self._answers_lock = threading.Lock()

    def post_all(self, deliveries: Iterable[Delivery]) -> Answers:
        """Send everything, each delivery once, and say what was answered."""
        todo = self._paced(deliveries)
        threads = [
            threading.Thread(target=self._post_from, args=(todo,)) for _ in range(self._connections)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return self._answers

    def _paced(self, deliveries: Iterable[Delivery]) -> Iterator[Delivery]:
        due_s = time.monotonic()
        for delivery in deliveries:
            time.sleep(max(0.0, due_s - time.monotonic()))
            due_s += self._interval_s
            yield delivery

    def _post_from(self, todo: Iterator[Delivery]) -> None:
        connection = self._connect()
        used_at_s = time.monotonic()
        while True:
            with self._todo_lock:
                delivery = next(todo, None)
            if delivery is None:
                break
            if time.monotonic() - used_at_s > self.reuse_within_s:
                connection.close()  # the next request opens it again
            self._post(connection, delivery)
            used_at_s = time.monotonic()
        connection.close()

    def _post(self, connection: http.client.HTTPConnection, delivery: Delivery) -> None:
        started_s = time.monotonic()
        try:
            connection.request("POST", self._target, *self._request(delivery))
            response = connection.getresponse()
            response.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            with self._answers_lock:
                self._answers.unanswered_count += 1
                self._answers.first_error = self._answers.first_error or _describe_error(error)
            return
        latency_s = time.monotonic() - started_s
        with self._answers_lock:
            self._answers.statuses[response.status] += 1
            self._answers.latencies_s.append(latency_s)
            if response.status == http.HTTPStatus.OK:
                self._answers.accepted_ids.append(delivery.event.webhook_id)

    def _request(self, delivery: Delivery) -> tuple[bytes, dict[str, str]]:
        event, timestamp = delivery.event, str(int(time.time()))
        secret = "whsec_" + "A" * 32 if delivery.is_forged else self._secret
        signature = sign(secret, event.webhook_id, timestamp, event.body, self._derivation)
        return event.body, {
            "content-type": "application/json",
            "webhook-id": event.webhook_id,
            "webhook-timestamp": timestamp,
            "webhook-signature": signature,
        }

    def _connect(self) -> http.client.HTTPConnection:
        host, port = self._address.hostname or "", self._address.port
        if self._address.scheme == "https":
            return http.client.HTTPSConnection(host, port, timeout=TIMEOUT_S)
        return http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)


def _describe_error(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"the certificate is not trusted, {error.verify_message} (SSL_CERT_FILE can name one "
            "to trust)"
        )
    text = error.strerror if isinstance(error, OSError) else ""
    return text or str(error) or type(error).__name__


def _split_url(url: str) -> SplitResult:
    if not url.isascii():
        raise ConfigurationError(
            f"{url!r} holds characters that are not ASCII; write those of a path as %C3%A4, and a "
            "host as its xn-- name"
        )
    try:
        address = urlsplit(url)
        # Reading the port checks it.
        if address.scheme in ("http", "https") and address.hostname and address.port != 0:
            return address
    except ValueError:
        pass  # a port or an IPv6 address that is none
    raise ConfigurationError(
        f"{url!r} is not an address to send to; give one like "
        "http://127.0.0.1:8080/webhooks/midbound"
    )


def _request_target(address: SplitResult) -> str:
    path = address.path or "/"
    return f"{path}?{address.query}" if address.query else path


def _default_url(receiver: ReceiverSettings) -> str:
    """Give the address of the receiver that these settings describe."""
    scheme = "https" if receiver.tls_certificate else "http"
    host = f"[{receiver.host}]" if ":" in receiver.host else receiver.host
    return f"{scheme}://{host}:{receiver.port}{WEBHOOK_PATH}"


def _whole(least: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} up")
        return int(text)

    return read


def _number(text: str, most: float, wanted: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 <= number <= most:  # also refuses nan
        raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}")
    return number


def _rate(text: str) -> float:
    return _number(text, 1e6, "a number of deliveries a second, or 0 for no limit")


def _share(text: str) -> float:
    return _number(text, 1, "a share from 0 to 1")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `midbound send`."""
    parser.add_argument("--url", help="where to send (default: the receiver of the settings)")
    parser.add_argument("--sample", action="store_true", help="send the vendor's sample event")
    parser.add_argument(
        "--count", type=_whole(0), default=0, help="how many generated events to send"
    )
    parser.add_argument("--seed", type=int, default=1, help="the same seed, the same events")
    parser.add_argument("--rate", type=_rate, default=0.0, help="deliveries a second (0: no limit)")
    parser.add_argument("--connections", type=_whole(1), default=4, help="how many at once")
    parser.add_argument(
        "--repeat-share", type=_share, default=0.0, help="send this share of events again"
    )
    parser.add_argument(
        "--bad-share", type=_share, default=0.0, help="forge one more for this share of events"
    )


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Send what the options say; done if everything that was well signed was accepted."""
    key = settings.keys()[0]  # says what to do when no secret is set
    receiver = settings.receiver
    url = args.url or _default_url(receiver)
    events = [sample_event()] if args.sample or not args.count else []
    events += generate_events(args.count, args.seed)
    deliveries = list(
        plan(events, repeat_share=args.repeat_share, bad_share=args.bad_share, seed=args.seed)
    )
    sender = Sender(
        url,
        receiver.webhook_secret[key.secret_index],
        derivation=key.derivation,
        connections=args.connections,
        rate=args.rate,
    )
    answers = sender.post_all(deliveries)
    wanted = sum(not delivery.is_forged for delivery in deliveries)
    print(f"{len(deliveries)} deliveries to {url}: {answers.describe()}")
    if len(answers.accepted_ids) == wanted:
        return ExitCode.DONE
    refused = show_count(wanted - len(answers.accepted_ids), "well-signed delivery was",
                         "well-signed deliveries were")  # fmt: skip
    advice = _advise(answers, is_tls_guess=receiver.tls_certificate is not None and not args.url)
    print(f"midbound send: {refused} not accepted; {advice}", file=sys.stderr)
    return ExitCode.FAILED


def _advise(answers: Answers, *, is_tls_guess: bool) -> str:
    if not answers.first_error:
        return "look at the receiver's log"
    if is_tls_guess:
        # The settings know the address that it listens at, not the name that its certificate has.
        what_to_do = "give the name of the certificate: --url https://your.name" + WEBHOOK_PATH
    else:
        what_to_do = "check the address, and that the receiver runs there"
    return f"the first without an answer: {answers.first_error}; {what_to_do}"
