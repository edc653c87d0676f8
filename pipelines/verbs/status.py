"""`midbound status`: what waits, what was refused or set aside, and what arrived."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines import schema
from pipelines.alarms import DAY_S, find_alarms, parse_duration_s
from pipelines.errors import LoadError, WarehouseHeldError
from pipelines.exit_codes import ExitCode
from pipelines.text_table import format_table, show_count, show_instant
from receiver.config import Settings
from receiver.counts import Counts, read_counts
from receiver.segment import Spool, segment_name

if TYPE_CHECKING:
    from pipelines.warehouse import Warehouse

Facts = dict[str, object]
SHOWN_SET_ASIDE = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `midbound status`."""
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument(
        "--max-age",
        type=parse_duration_s,
        metavar="AGE",
        help="complain when nothing was accepted, or loaded, for this long (90s, 30m, 2h, 1d)",
    )


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Look at spool, door and warehouse; what happened in the last day needs attention."""
    spool = Spool(settings.spool.path)
    counts = read_counts(spool)
    now_s = time.time()
    alarms = find_alarms(counts, now_s=now_s, max_age_s=args.max_age)
    alarms += _recent_damages(spool, now_s)
    spool_facts = _look_at_spool(spool)
    alarms += _long_waiting(spool, now_s, args.max_age)
    warehouse_facts, failure = _look_at_warehouse(alarms)
    if args.json:
        facts = {
            "spool": spool_facts,
            "door": _look_at_door(counts),
            "warehouse": warehouse_facts,
            "alarms": alarms,
        }
        print(json.dumps(facts, indent=2, default=show_instant))
    else:
        blocks = [_describe_spool(spool_facts), _describe_door(counts)]
        print("\n\n".join([*blocks, *_describe_warehouse(warehouse_facts)]))
    for alarm in alarms:
        print(f"midbound status: {alarm}", file=sys.stderr)
    if failure is not None:
        raise failure  # last, for the message and the exit code that any verb gives it
    return ExitCode.NEEDS_ATTENTION if alarms else ExitCode.DONE


def _look_at_spool(spool: Spool) -> Facts:
    ready, being_written = spool.ready_segments(), spool.open_segments()
    return {
        "path": str(spool.path),
        "exists": spool.path.is_dir(),
        "waiting_segments": len(ready),
        "waiting_bytes": _size_bytes(ready),
        "waiting_since": _started_at(ready[0]) if ready else None,
        "open_segments": len(being_written),
        "open_since": _started_at(being_written[0]) if being_written else None,
        "open_bytes": _size_bytes(being_written),
        "loaded_segments": len(spool.loaded_segments()),
        "damages": len(list(_quarantined(spool))),
    }


def _size_bytes(paths: list[Path]) -> int:
    size_bytes = 0
    for path in paths:
        # One that was sealed or loaded since it was listed is no longer here.
        with contextlib.suppress(FileNotFoundError):
            size_bytes += path.stat().st_size
    return size_bytes


def _started_at(path: Path) -> datetime | None:
    try:
        started = datetime.strptime(segment_name(path).split("-")[0], "%Y%m%dT%H%M%S.%f%z")
    except ValueError:
        return None
    return started.astimezone(UTC)


def _quarantined(spool: Spool) -> Iterator[Path]:
    return spool.quarantine.glob("*.json")


def _recent_damages(spool: Spool, now_s: float) -> list[str]:
    recent = [path for path in _quarantined(spool) if now_s - path.stat().st_mtime < DAY_S]
    alarm = (
        f"{_stretches(len(recent))} found in the last day; look at "
        f"{spool.quarantine}, and at this machine's disk"
    )
    return [alarm] if recent else []


def _long_waiting(spool: Spool, now_s: float, max_age_s: float | None) -> list[str]:
    """Say that nothing loads: a scheduler that has stopped rings nowhere itself."""
    ages_s = []
    for path in spool.ready_segments():
        with contextlib.suppress(FileNotFoundError):  # a load has moved it meanwhile
            ages_s.append(now_s - path.stat().st_mtime)
    if max_age_s is None or max(ages_s, default=0.0) <= max_age_s:
        return []
    since = show_instant(datetime.fromtimestamp(now_s - max(ages_s), UTC))
    return [
        f"sealed segments wait for a load since {since}: check that the scheduled load runs; "
        "midbound load says what keeps it"
    ]


def _stretches(count: int) -> str:
    return f"{show_count(count, 'stretch', 'stretches')} of damaged bytes"


def _look_at_door(counts: Counts) -> Facts:
    return {
        "accepted": counts.accepted,
        "last_accepted_at": counts.last_accepted_at,
        "refused": counts.refused,
        "last_refused_at": counts.last_refused_at,
        "matched_keys": counts.matched,
        "clock_skew_s": counts.clock_skew_s,
    }


def _look_at_warehouse(alarms: list[str]) -> tuple[Facts, LoadError | None]:
    """Ask the warehouse, adding to the alarms; also give what kept it from answering.

    The rest of the status needs no warehouse, and is shown in any case.
    """
    try:
        # dlt takes a second to import, and a host that only receives does not have it.
        from pipelines.patience import named_failures  # noqa: PLC0415
        from pipelines.warehouse import open_to_read  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if error.name != "dlt":
            raise
        return {"exists": None, "unknown": "dlt is not installed on this host"}, None
    try:
        with named_failures(), open_to_read() as warehouse:
            if warehouse is None:
                return {"exists": False}, None
            facts = _ask(warehouse)
    except WarehouseHeldError as error:
        return {"exists": True, "unknown": "another process holds it"}, error
    except LoadError as error:
        return {"exists": None, "unknown": "it does not answer"}, error
    if facts["recently_set_aside"]:
        alarms.append(
            f"set aside in the last day: {facts['recently_set_aside']}; see the reasons above, "
            "and midbound explain EVENT_ID"
        )
    return facts, None


def _ask(warehouse: Warehouse) -> Facts:
    loads = warehouse.select(
        schema.LOADS_TABLE,
        ["load_id", "status", "started_at", "finished_at", "events", "repeats", "duration_s"],
        newest_by="started_at",
        limit=1,
    )
    newest = warehouse.select(
        schema.ROOT_TABLE,
        ["event_id", "event_type", "received_at"],
        newest_by="received_at",
        limit=1,
    )
    set_aside = warehouse.select(
        schema.DELIVERIES_TABLE,
        ["event_id", "segment", "line", "reason", "loaded_at"],
        where={"outcome": schema.Outcome.SET_ASIDE.value},
        newest_by="loaded_at",
    )
    a_day_ago = datetime.now(UTC) - timedelta(days=1)
    return {
        "exists": True,
        "last_load": loads[0] if loads else None,
        "newest_event": newest[0] if newest else None,
        "row_counts": dict(sorted(warehouse.count_all().items())),
        "set_aside": set_aside,
        "recently_set_aside": sum(_is_after(row["loaded_at"], a_day_ago) for row in set_aside),
    }


def _is_after(instant: object, limit: datetime) -> bool:
    return isinstance(instant, datetime) and instant > limit


def _describe_spool(facts: Mapping[str, object]) -> str:
    if not facts["exists"]:
        return f"spool       {facts['path']} does not exist yet; midbound receive makes it"
    return "\n".join(
        [
            f"spool       {facts['path']}",
            f"waiting     {_describe_segments(facts, 'waiting')}",
            f"open        {_describe_segments(facts, 'open')}",
            f"loaded      {show_count(_number(facts, 'loaded_segments'), 'segment')} kept",
            f"quarantine  {_stretches(_number(facts, 'damages'))}",
        ]
    )


def _describe_segments(facts: Mapping[str, object], state: str) -> str:
    text = show_count(_number(facts, f"{state}_segments"), "segment")
    since = facts[f"{state}_since"]
    if since is None:
        return text
    return f"{text}, {_number(facts, f'{state}_bytes'):,} bytes, since {show_instant(since)}"


def _number(facts: Mapping[str, object], name: str) -> int:
    return int(str(facts[name]))


def _describe_door(counts: Counts) -> str:
    last = show_instant(counts.last_accepted_at) or "never"
    accepted = show_count(counts.accepted, "delivery", "deliveries")
    lines = [f"accepted    {accepted}, the last: {last}"]
    lines += [
        f"signed by   secret {key}: {count:,}" for key, count in sorted(counts.matched.items())
    ]
    lines += [
        f"refused     {reason}: {count:,}, the last: {show_instant(counts.last_refused_at[reason])}"
        for reason, count in sorted(counts.refused.items())
    ]
    return "\n".join(lines)


def _describe_warehouse(facts: Facts) -> list[str]:
    if "unknown" in facts:
        return [f"warehouse   not asked: {facts['unknown']}"]
    if not facts["exists"]:
        return ["warehouse   no table yet; midbound load makes them"]
    blocks = [_describe_last(facts)]
    row_counts, set_aside = facts["row_counts"], facts["set_aside"]
    if isinstance(row_counts, dict):
        blocks.append(format_table(("table", "rows"), list(row_counts.items())))
    if isinstance(set_aside, list) and set_aside:
        rows = [
            (
                show_instant(row["loaded_at"]),
                row["event_id"],
                row["segment"],
                str(row["line"]),
                row["reason"],
            )
            for row in set_aside[:SHOWN_SET_ASIDE]
        ]
        names = ("set aside at", "event", "segment", "line", "reason")
        more = len(set_aside) - len(rows)
        blocks.append(format_table(names, rows) + (f"\nand {more:,} more" if more else ""))
    return blocks


def _describe_last(facts: Facts) -> str:
    load, event = facts["last_load"], facts["newest_event"]
    lines = []
    if isinstance(load, dict):
        lines.append(
            f"last load   {show_instant(load['started_at'])}, {_describe_load(load)} "
            f"(load {load['load_id']})"
        )
    if isinstance(event, dict):
        lines.append(
            f"newest      {event['event_id']}, {event['event_type']}, received "
            f"{show_instant(event['received_at'])}"
        )
    return "\n".join(lines)


def _describe_load(load: Mapping[str, object]) -> str:
    if load["status"] != "done":
        return "started and not done; the next load takes it back"
    events = show_count(_number(load, "events"), "event")
    repeats = show_count(_number(load, "repeats"), "repeat")
    return f"done in {float(str(load['duration_s'])):.1f} s: {events}, {repeats}"
