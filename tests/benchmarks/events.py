"""The events that the benchmarks load: generated, as plain lines and as sealed segments."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from pipelines.demo.generate import GeneratedEvent, generate_events
from receiver.config import SpoolSettings
from receiver.record import Delivery
from receiver.segment import Spool
from receiver.spool import Writer

FINALIZED = frozenset({"identity.session.finalized"})  # the large ones, with all enrichment
BATCH = 500  # deliveries that wait for one sync


def finalized_events(count: int, seed: int = 1) -> Iterator[GeneratedEvent]:
    """Generate events; other seeds give other ids."""
    return generate_events(count, seed, types=FINALIZED)


def write_bodies(path: Path, events: Iterable[GeneratedEvent]) -> None:
    """Write the bodies as plain JSONL, for those who read that."""
    with path.open("wb") as lines:
        lines.writelines(event.body + b"\n" for event in events)


def fill_spool(path: Path, events: Iterable[GeneratedEvent]) -> None:
    """Write the events into sealed segments, as the receiver does."""
    path.parent.mkdir(exist_ok=True)
    spool = Spool(path)
    spool.create()
    writer = Writer(spool, SpoolSettings(path=path, min_free_bytes=0))
    rest = iter(events)
    while batch := list(islice(rest, BATCH)):
        futures = [writer.submit(delivery_of(event)) for event in batch]
        for future in futures:
            future.result()
    writer.close()


def delivery_of(event: GeneratedEvent) -> Delivery:
    """Give the delivery of an event; its signature is not looked at any more."""
    return Delivery(
        webhook_id=event.webhook_id,
        webhook_timestamp="1795454525",
        webhook_signature="v1,bm90IGxvb2tlZCBhdA==",
        received_at="2026-11-23T17:22:05.123456Z",
        body=event.body,
    )
