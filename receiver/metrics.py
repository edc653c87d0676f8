"""Metrics for Prometheus, on an address of their own: what was counted, and what the spool holds.

Read from the spool's files at each scrape, so that one process answers for all, for the dead ones
too. Never served beside the webhook: a stranger learns no counts.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from prometheus_client import CollectorRegistry, start_wsgi_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from receiver.counts import Counts, read_counts
from receiver.disk import Disk
from receiver.errors import ConfigurationError
from receiver.segment import Spool, segment_file_names


def serve_metrics(spool: Spool, host: str, port: int) -> None:
    """Serve `/metrics` from a thread of this process. Raises ConfigurationError if it cannot."""
    registry = CollectorRegistry()
    registry.register(SpoolCollector(spool))
    try:
        server, _thread = start_wsgi_server(port, host, registry)
    except OSError as error:
        raise ConfigurationError(
            f"cannot serve metrics on {host}:{port}: {error.strerror}; set "
            "receiver.metrics_host and receiver.metrics_port (RECEIVER__METRICS_PORT) to a free "
            "address of this machine"
        ) from None
    # A child that kept the port would answer for a parent that is gone.
    os.register_at_fork(after_in_child=server.socket.close)


class SpoolCollector(Collector):
    """Turns a spool's counts and files into metrics."""

    def __init__(self, spool: Spool, disk: Disk | None = None) -> None:
        self._spool = spool
        self._disk = disk or Disk()

    def describe(self) -> list[Metric]:
        """Promise nothing beforehand, so that registering does not read the spool."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Give all metrics as they are now."""
        yield from count_metrics(read_counts(self._spool))
        yield from self._spool_metrics()

    def _spool_metrics(self) -> Iterator[Metric]:
        spool = self._spool
        files = GaugeMetricFamily(
            "midbound_spool_files", "Files in each directory of the spool.", labels=["directory"]
        )
        for directory in (spool.open, spool.ready, spool.loaded):
            files.add_metric([directory.name], len(segment_file_names(directory)))
        files.add_metric(["quarantine"], _count_quarantined(spool.quarantine))
        yield files
        yield GaugeMetricFamily(
            "midbound_spool_oldest_ready_timestamp_seconds",
            "When the oldest segment that waits for a load was sealed; 0 if none waits.",
            value=_oldest_at_s(spool.ready),
        )
        # Left out if it cannot be told: the counts are what says why.
        with contextlib.suppress(OSError):
            yield GaugeMetricFamily(
                "midbound_spool_free_bytes",
                "Space that is left for the spool.",
                value=self._disk.free_bytes(spool.path),
            )


def count_metrics(counts: Counts) -> Iterator[Metric]:
    """Give what the receiver has counted."""
    accepted = "midbound_deliveries_accepted"
    yield CounterMetricFamily(
        accepted,
        "Deliveries made durable; one that the disk took too late was answered 503.",
        value=counts.accepted,
    )
    yield _labelled("midbound_deliveries_refused", "Requests not answered 200.", counts.refused)
    yield GaugeMetricFamily(
        "midbound_last_accepted_timestamp_seconds",
        "When a delivery was last made durable; 0 if never.",
        value=_instant_s(counts.last_accepted_at),
    )
    yield _labelled("midbound_key_matches", "Deliveries made durable, by the key that signed them.",
                    counts.matched, label="key")  # fmt: skip
    last_matched = GaugeMetricFamily(
        "midbound_key_last_match_timestamp_seconds",
        "When a key was last seen in use: an old one that stays behind can be retired.",
        labels=["key"],
    )
    for key, instant in sorted(counts.last_matched_at.items()):
        last_matched.add_metric([key], _instant_s(instant))
    yield last_matched
    yield GaugeMetricFamily(
        "midbound_clock_skew_seconds",
        "Age of the last delivery refused as stale; negative if it came from the future.",
        value=counts.clock_skew_s or 0,
    )


def _labelled(
    name: str, text: str, values: dict[str, int], label: str = "reason"
) -> CounterMetricFamily:
    metric = CounterMetricFamily(name, text, labels=[label])
    for value, count in sorted(values.items()):
        metric.add_metric([value], count)
    return metric


def _instant_s(instant: str | None) -> float:
    return datetime.fromisoformat(instant).timestamp() if instant else 0.0


def _oldest_at_s(ready: Path) -> float:
    """Give when the segment was sealed that waits for the longest; 0 if none waits."""
    oldest_s = min((_sealed_at_s(ready / name) for name in segment_file_names(ready)), default=0.0)
    return 0.0 if oldest_s == float("inf") else oldest_s


def _sealed_at_s(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # a load has moved it meanwhile
        return float("inf")


def _count_quarantined(directory: Path) -> int:
    try:
        with os.scandir(directory) as entries:
            return sum(entry.name.endswith(".bin") for entry in entries)
    except FileNotFoundError:
        return 0
