"""Fill a spool the way the receiver does, for tests that need something to load."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from receiver.config import Settings, SpoolSettings
from receiver.record import Delivery
from receiver.segment import Spool
from receiver.spool import Writer

SAMPLE = Path(__file__).with_name("identity.session.finalized.json").read_bytes()
RECEIVED_AT = "2026-11-23T17:22:05.123456Z"


def sample_event() -> dict:
    """Give the vendor's sample, to be changed at will."""
    return json.loads(SAMPLE)


def fill_spool(path: Path, bodies: Iterable[tuple[str, bytes]]) -> Settings:
    """Write one sealed segment of these (webhook id, body) pairs; give the settings to load it."""
    spool = Spool(path)
    spool.create()
    writer = Writer(spool, SpoolSettings(path=path, min_free_bytes=0))
    for webhook_id, body in bodies:
        delivery = Delivery(
            webhook_id=webhook_id,
            webhook_timestamp="1795454525",
            webhook_signature="v1,c2lnbmVk",
            received_at=RECEIVED_AT,
            body=body,
        )
        writer.submit(delivery).result()
    writer.close()
    return Settings(spool=SpoolSettings(path=path, min_free_bytes=0))
