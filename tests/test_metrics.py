"""The metrics, read as Prometheus reads them, on an address of their own."""

from __future__ import annotations

import errno
import os
import socket
import urllib.request
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from serving import OTHER_KEY, OTHER_SECRET, SECRET, free_port, running, wait_until

from receiver.counts import Counts, ProcessCounts
from receiver.disk import Disk
from receiver.metrics import SpoolCollector, count_metrics
from receiver.segment import Spool

Samples = dict[tuple[str, ...], float]


def parse(text: str) -> Samples:
    """Give each sample by its name and the values of its labels."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def scrape(port: int) -> Samples:
    url = f"http://127.0.0.1:{port}/metrics"
    with urllib.request.urlopen(url, timeout=5) as answer:
        return parse(answer.read().decode())


def scraped(port: int, name: str, *labels: str, value: float) -> Samples:
    wait_until(lambda: scrape(port).get((name, *labels)) == value, f"{name} {labels}")
    return scrape(port)


def test_a_scrape_tells_what_was_taken_and_refused_and_which_key_is_in_use(tmp_path: Path) -> None:
    port = free_port()
    with running(
        tmp_path,
        RECEIVER__METRICS_PORT=str(port),
        RECEIVER__WEBHOOK_SECRET=f"{OTHER_SECRET},{SECRET}",
        SPOOL__SEGMENT_MAX_AGE_S="0.1",
    ) as server:
        server.wait_until_up()
        for number in range(3):
            assert server.post(number)[0] == 200
        assert server.post(3, key=OTHER_KEY)[0] == 200
        assert server.post(4, key=b"of nobody at all")[0] == 401
        scraped(port, "midbound_deliveries_accepted_total", value=4)
        scraped(port, "midbound_deliveries_refused_total", "wrong_signature", value=1)
        found = scraped(port, "midbound_spool_files", "open", value=0)
        assert found["midbound_key_matches_total", "bffcb3:base64"] == 3
        assert found["midbound_key_matches_total", "bf3998:base64"] == 1
        last_match = "midbound_key_last_match_timestamp_seconds"
        assert found[last_match, "bffcb3:base64"] <= found[last_match, "bf3998:base64"]
        last_s = found["midbound_last_accepted_timestamp_seconds",]
        assert last_s == found[last_match, "bf3998:base64"]
        assert found["midbound_spool_files", "ready"] >= 1
        assert found["midbound_spool_oldest_ready_timestamp_seconds",] > 0
        assert found["midbound_spool_free_bytes",] > 0


def test_a_stranger_at_the_webhooks_door_learns_no_counts(tmp_path: Path) -> None:
    with running(tmp_path, RECEIVER__METRICS_PORT=str(free_port())) as server:
        server.wait_until_up()
        assert server.send(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n").startswith(b"HTTP/1.1 404 ")
        for path in ("/healthz", "/readyz"):
            connection = server.connect()
            connection.request("GET", path)
            assert connection.getresponse().read() == b"ok"
            connection.close()


def test_a_taken_port_is_told_and_nothing_starts(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with running(tmp_path, RECEIVER__METRICS_PORT=str(port)) as server:
            assert server.process.wait(15) == 1
            assert server.log().splitlines()[-1] == (
                "receiver.errors.ConfigurationError: cannot serve metrics on "
                f"127.0.0.1:{port}: Address already in use; set receiver.metrics_host and "
                "receiver.metrics_port (RECEIVER__METRICS_PORT) to a free address of this machine"
            )


def test_a_clock_that_is_off_shows(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    spool.create()
    counts = ProcessCounts(spool)
    counts.add_refused("stale", clock_skew_s=-4000)
    counts.close()
    registry = CollectorRegistry()
    registry.register(SpoolCollector(spool))
    found = parse(generate_latest(registry).decode())
    assert found["midbound_clock_skew_seconds",] == -4000
    assert found["midbound_deliveries_refused_total", "stale"] == 1
    assert found["midbound_deliveries_accepted_total",] == 0
    assert found["midbound_last_accepted_timestamp_seconds",] == 0


def collected(spool: Spool, disk: Disk | None = None) -> Samples:
    registry = CollectorRegistry()
    registry.register(SpoolCollector(spool, disk))
    return parse(generate_latest(registry).decode())


def test_files_are_counted_and_the_oldest_that_waits_is_dated(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    spool.create()
    places = {"open": 1, "ready": 2, "loaded": 3}
    for state, count in places.items():
        for number in range(count):
            (spool.path / state / f"{number}.jsonl").touch()
    os.utime(spool.ready / "1.jsonl", (1000, 1000))
    for name in ("a.bin", "a.json", "b.bin"):
        (spool.quarantine / name).touch()
    found = collected(spool)
    for state, count in (places | {"quarantine": 2}).items():
        assert found["midbound_spool_files", state] == count
    assert found["midbound_spool_oldest_ready_timestamp_seconds",] == 1000


def test_a_disk_that_cannot_tell_its_space_hides_nothing_else(tmp_path: Path) -> None:
    class Lost(Disk):
        def free_bytes(self, path: Path) -> int:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    spool = Spool(tmp_path / "spool")
    spool.create()
    counts = ProcessCounts(spool)
    counts.add_accepted("a")
    counts.close()
    found = collected(spool, Lost())
    assert found["midbound_deliveries_accepted_total",] == 1
    assert ("midbound_spool_free_bytes",) not in found


def test_a_spool_that_is_gone_is_scraped_as_empty(tmp_path: Path) -> None:
    found = collected(Spool(tmp_path / "none"))
    assert found["midbound_spool_files", "ready"] == 0
    assert found["midbound_spool_oldest_ready_timestamp_seconds",] == 0


def test_a_label_from_outside_cannot_forge_a_line() -> None:
    # Reasons and key names are ours; should one ever hold more, the text stays one sample.
    class Collector:
        def collect(self):
            yield from count_metrics(Counts(refused={'a"\nmidbound_forged 1\n': 1}))

    registry = CollectorRegistry()
    registry.register(Collector())
    found = parse(generate_latest(registry).decode())
    assert found["midbound_deliveries_refused_total", 'a"\nmidbound_forged 1\n'] == 1
    assert ("midbound_forged",) not in found


def test_the_help_tells_durable_from_answered() -> None:
    """A disk that took an event after the wait was over counts it beside a 503."""
    told = {metric.name: metric.documentation for metric in count_metrics(Counts())}
    assert told == {
        "midbound_deliveries_accepted": (
            "Deliveries made durable; one that the disk took too late was answered 503."
        ),
        "midbound_deliveries_refused": "Requests not answered 200.",
        "midbound_last_accepted_timestamp_seconds": (
            "When a delivery was last made durable; 0 if never."
        ),
        "midbound_key_matches": "Deliveries made durable, by the key that signed them.",
        "midbound_key_last_match_timestamp_seconds": (
            "When a key was last seen in use: an old one that stays behind can be retired."
        ),
        "midbound_clock_skew_seconds": (
            "Age of the last delivery refused as stale; negative if it came from the future."
        ),
    }
