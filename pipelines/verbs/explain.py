"""`midbound explain EVENT_ID`: its deliveries, its load, and the rows that it became.

The warehouse knows what was loaded; what it does not know may lie in a segment still.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pipelines import schema
from pipelines.exit_codes import ExitCode
from pipelines.text_table import format_table, show_count, show_instant
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


@dataclass(slots=True, kw_only=True)
class Findings:
    """What is known of one event; `lines` are those of the spool that no load has recorded."""

    event_id: str
    deliveries: list[Row] = field(default_factory=list)
    event: Row | None = None
    row_counts: dict[str, int] = field(default_factory=dict)
    lines: list[Row] = field(default_factory=list)

    @property
    def waiting(self) -> list[Row]:
        return [line for line in self.lines if line["state"] != "loaded"]

    @property
    def is_missing_in_warehouse(self) -> bool:
        return not self.deliveries and any(line["state"] == "loaded" for line in self.lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `midbound explain`."""
    parser.add_argument("event_id", metavar="EVENT_ID", help="the webhook-id of the event")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Look in the warehouse, then in the spool."""
    findings = _ask_warehouse(args.event_id)
    _search_spool(Spool(settings.spool.path), findings)
    if not findings.deliveries and not findings.lines:
        return _say_to_stderr(
            f"{args.event_id} is neither in the warehouse nor in the spool; it was never accepted "
            "here (midbound status tells what was refused)",
            ExitCode.FAILED,
        )
    if args.json:
        print(json.dumps(_as_facts(findings), indent=2, default=show_instant))
    else:
        print("\n\n".join(_describe(findings)))
    if findings.is_missing_in_warehouse:
        return _say_to_stderr(
            f"{args.event_id} lies in a segment that was loaded, but the warehouse does not hold "
            "it: compare destination.warehouse with what it was when that segment was loaded",
            ExitCode.NEEDS_ATTENTION,
        )
    return ExitCode.DONE


def _say_to_stderr(message: str, code: ExitCode) -> ExitCode:
    print(f"midbound explain: {message}", file=sys.stderr)
    return code


def _ask_warehouse(event_id: str) -> Findings:
    # dlt takes a second to import; --help must not wait for it.
    from pipelines.patience import named_failures  # noqa: PLC0415
    from pipelines.warehouse import open_to_read  # noqa: PLC0415

    findings = Findings(event_id=event_id)
    where = {"event_id": event_id}
    with named_failures(), open_to_read() as warehouse:
        if warehouse is None:
            return findings
        deliveries = warehouse.select(schema.DELIVERIES_TABLE, DELIVERY_COLUMNS, where=where)
        events = warehouse.select(
            schema.ROOT_TABLE, [*schema.CONTEXT_COLUMNS, "_dlt_id", "_dlt_load_id"], where=where
        )
        counts = warehouse.count_all(where) if events else {}
    findings.deliveries = sorted(deliveries, key=_place)  # a segment's name tells its time
    findings.event = events[0] if events else None
    findings.row_counts = {
        table: count
        for table, count in sorted(counts.items())
        if count and table != schema.DELIVERIES_TABLE
    }
    return findings


def _search_spool(spool: Spool, findings: Findings) -> None:
    """Add the event's lines that the warehouse does not know.

    A segment only ever moves on, from open to ready to loaded; looking in this order sees one
    that moves meanwhile at least once. Loaded segments are many, and only searched for an event
    that the warehouse does not know at all.
    """
    seen = {_place(row) for row in findings.deliveries}
    states = {"being written": spool.open_segments, "sealed": spool.ready_segments}
    if not findings.deliveries:
        states["loaded"] = spool.loaded_segments
    for state, list_segments in states.items():
        for path in list_segments():
            for line in _find_lines(path, findings.event_id, is_open=state == "being written"):
                if _place(line) not in seen:
                    seen.add(_place(line))
                    findings.lines.append(line | {"state": state})


def _place(row: Row) -> tuple[str, int]:
    return str(row["segment"]), int(str(row["line"]))


def _find_lines(path: Path, event_id: str, *, is_open: bool) -> Iterator[Row]:
    # The id stands in its line as JSON text: most segments are ruled out without cutting them up.
    written = json.dumps(event_id).encode()
    with contextlib.suppress(FileNotFoundError):  # it has moved on
        if written not in path.read_bytes():
            return
        content = read_segment(path, is_open=is_open)
        for span in content.lines:
            envelope = split_line(content.data, span.start, span.end)
            if envelope.webhook_id == event_id:
                yield {
                    "segment": segment_name(path),
                    "line": envelope.n,
                    "received_at": envelope.received_at,
                }


def _as_facts(findings: Findings) -> Row:
    return {
        "event_id": findings.event_id,
        "deliveries": findings.deliveries,
        "waiting": findings.waiting,
        "missing": findings.lines if findings.is_missing_in_warehouse else [],
        "event": findings.event,
        "row_counts": findings.row_counts,
    }


def _describe(findings: Findings) -> Iterator[str]:
    recorded = show_count(len(findings.deliveries), "delivery", "deliveries")
    yield f"{findings.event_id}: {recorded} recorded, {len(findings.waiting)} waiting in the spool"
    yield from map(_describe_delivery, findings.deliveries)
    if findings.lines:
        names = ("state", "segment", "line", "received_at")
        rows = [[show_instant(row[name]) for name in names] for row in findings.lines]
        yield format_table(names, rows)
    if findings.event is not None:
        yield "\n".join(f"{name:<13} {show_instant(v)}" for name, v in findings.event.items())
    if findings.row_counts:
        yield format_table(("table", "rows"), list(findings.row_counts.items()))


def _describe_delivery(row: Row) -> str:
    reason = f": {row['reason']}" if row["reason"] else ""
    return "\n".join(
        [
            f"outcome       {str(row['outcome']).replace('_', ' ')}{reason}",
            f"sent          {show_instant(row['sent_at'])}",
            f"received      {show_instant(row['received_at'])}",
            f"recorded      {show_instant(row['loaded_at'])} by load {row['_dlt_load_id']}",
            f"lies in       segment {row['segment']}, line {row['line']}",
        ]
    )
