"""`midbound explain EVENT_ID`: its deliveries, its load, and the rows that it became."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator

from pipelines import schema
from pipelines.exit_codes import ExitCode
from pipelines.text_table import format_table, show_instant
from receiver.config import Settings
from receiver.record import split_line
from receiver.segment import Spool, read_segment, segment_name

Row = dict[str, object]
DELIVERY_COLUMNS = (
    "outcome",
    "reason",
    "segment",
    "line",
    "sent_at",
    "received_at",
    "loaded_at",
    "size_bytes",
    "body_sha256",
    "_dlt_load_id",
)
SHOWN_COLUMNS = ("outcome", "segment", "line", "received_at", "loaded_at", "reason")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `midbound explain`."""
    parser.add_argument("event_id", metavar="EVENT_ID", help="the webhook-id of the event")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Look in the warehouse, then in the segments that are not loaded."""
    deliveries, event, row_counts = _ask_warehouse(args.event_id)
    waiting = list(_find_waiting(Spool(settings.spool.path), args.event_id))
    if not deliveries and not waiting:
        print(
            f"midbound explain: {args.event_id} is neither in the warehouse nor in the spool; it "
            "was never accepted here (midbound status tells what was refused)",
            file=sys.stderr,
        )
        return ExitCode.FAILED
    if args.json:
        facts = {
            "event_id": args.event_id,
            "deliveries": deliveries,
            "waiting": waiting,
            "event": event,
            "row_counts": row_counts,
        }
        print(json.dumps(facts, indent=2, default=show_instant))
    else:
        print("\n\n".join(_describe(args.event_id, deliveries, waiting, event, row_counts)))
    return ExitCode.DONE


def _ask_warehouse(event_id: str) -> tuple[list[Row], Row | None, dict[str, int]]:
    # dlt takes a second to import; --help must not wait for it.
    from pipelines.patience import named_failures  # noqa: PLC0415
    from pipelines.warehouse import open_to_read  # noqa: PLC0415

    with named_failures(), open_to_read() as warehouse:
        if warehouse is None:
            return [], None, {}
        where = {"event_id": event_id}
        deliveries = warehouse.select(
            schema.DELIVERIES_TABLE, DELIVERY_COLUMNS, where=where, newest_by="received_at"
        )
        events = warehouse.select(
            schema.ROOT_TABLE, [*schema.CONTEXT_COLUMNS, "_dlt_id", "_dlt_load_id"], where=where
        )
        counts = warehouse.count_all(where) if deliveries else {}
    counts.pop(schema.DELIVERIES_TABLE, None)
    return deliveries, events[0] if events else None, {t: n for t, n in counts.items() if n}


def _find_waiting(spool: Spool, event_id: str) -> Iterator[Row]:
    """Look for the event in every segment that no load has marked yet."""
    states = {"sealed": spool.ready_segments(), "being written": spool.open_segments()}
    for state, paths in states.items():
        for path in paths:
            content = read_segment(path, is_open=state != "sealed")
            for span in content.lines:
                envelope = split_line(content.data, span.start, span.end)
                if envelope.webhook_id == event_id:
                    yield {
                        "segment": segment_name(path),
                        "state": state,
                        "line": envelope.n,
                        "received_at": envelope.received_at,
                    }


def _describe(
    event_id: str,
    deliveries: list[Row],
    waiting: list[Row],
    event: Row | None,
    row_counts: dict[str, int],
) -> Iterator[str]:
    yield f"{event_id}: {len(deliveries)} deliveries recorded, {len(waiting)} waiting in the spool"
    if event is not None:
        yield "\n".join(f"{name:<13} {show_instant(value)}" for name, value in event.items())
    if row_counts:
        yield format_table(("table", "rows"), sorted(row_counts.items()))
    if deliveries:
        rows = [[show_instant(row[name]) for name in SHOWN_COLUMNS] for row in deliveries]
        yield format_table(SHOWN_COLUMNS, rows)
    if waiting:
        names = ("state", "segment", "line", "received_at")
        yield format_table(names, [[show_instant(row[name]) for name in names] for row in waiting])
