"""Measure the steps of a delivery that must not be left out, each alone in one thread.

    python tests/benchmarks/bench_delivery.py --rounds 5

Prints the median of the rounds. What a delivery takes beyond these and an empty request, as
`bench_receive.py` loads them, is for threads, queues and counts.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench_receive import BODY_BYTES, body_of_average_size
from serving import SECRET, sign

from pipelines.text_table import format_table
from receiver.hashing import update
from receiver.record import Delivery, encode_line
from receiver.signature import SignedHeaders, check_headers, derive_keys, find_key

EVENT_ID = "evt_1"
RECEIVED_AT = "2026-01-01T00:00:00.000000Z"


def main() -> None:
    """Measure each step, and print what it takes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=2000, help="that a step is done a round")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="midbound-bench-") as name:
        found = {
            step: statistics.median(_cpu_us(work, args.times) for _ in range(args.rounds))
            for step, work in _steps(Path(name)).items()
        }
    print(f"\nOne delivery of {BODY_BYTES / 1000:.0f} kB, step by step")
    rows = [(step, f"{microseconds:.1f}") for step, microseconds in found.items()]
    print(format_table(("step", "us of a core"), rows))


def _steps(directory: Path) -> dict[str, Callable[[], object]]:
    body = body_of_average_size()
    headers = sign(body, EVENT_ID)
    keys = derive_keys([SECRET])

    def read_headers() -> SignedHeaders:
        return check_headers(headers, now_s=int(time.time()))

    signed = read_headers()
    delivery = Delivery(
        webhook_id=signed.webhook_id,
        webhook_timestamp=signed.webhook_timestamp,
        webhook_signature=find_key(signed, body, keys).signature,
        received_at=RECEIVED_AT,
        body=body,
    )
    line = encode_line(delivery, n=1, seed=1)
    digest = hashlib.sha256()
    segment = (directory / "segment").open("wb", buffering=0)

    def write_and_sync() -> None:
        segment.write(line)
        os.fdatasync(segment.fileno())

    return {
        "read the signed headers": read_headers,
        "verify the signature, with both derivations of the key": lambda: find_key(
            signed, body, keys
        ),
        "prove the body to be JSON, write the line with its checksum": lambda: encode_line(
            delivery, n=1, seed=1
        ),
        "add the line to the segment's checksum": lambda: update(digest, line),
        "write and sync, which several lines share": write_and_sync,
    }


def _cpu_us(work: Callable[[], object], times: int) -> float:
    started_s = time.process_time()
    for _ in range(times):
        work()
    return (time.process_time() - started_s) / times * 1e6


if __name__ == "__main__":
    main()
