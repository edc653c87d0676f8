"""`midbound load`: one run, and what came of it."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import textwrap
import time

from pipelines.alarms import find_alarms, parse_duration_s
from pipelines.exit_codes import ExitCode
from pipelines.load import run_load
from pipelines.progress import make_progress
from pipelines.report import LoadReport, Refusal
from pipelines.text_table import format_table, show_count
from receiver.config import Settings
from receiver.counts import read_counts
from receiver.segment import Spool

SHOWN_REFUSALS = 20
LINE_WIDTH = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `midbound load`."""
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    parser.add_argument(
        "--max-age",
        type=parse_duration_s,
        metavar="AGE",
        help="complain when nothing was accepted for this long (90s, 30m, 2h, 1d)",
    )


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Load, report, and look whether the silence is a healthy one."""
    report = run_load(settings, make_progress())
    counts = read_counts(Spool(settings.spool.path))
    alarms = find_alarms(counts, now_s=time.time(), max_age_s=args.max_age)
    if args.json:
        print(json.dumps(dataclasses.asdict(report) | {"alarms": alarms}, indent=2))
    else:
        print(describe(report))
    for alarm in alarms:
        print(f"midbound load: {alarm}", file=sys.stderr)
    if alarms or report.needs_attention:
        return ExitCode.NEEDS_ATTENTION
    return ExitCode.DONE if report.has_work else ExitCode.NOTHING_TO_DO


def describe(report: LoadReport) -> str:
    """Say what a run did, for a person."""
    if not report.has_work:
        return "Nothing to do: no sealed segment waits in the spool."
    blocks = [_describe_counts(report)]
    if report.row_counts:
        blocks.append(format_table(("table", "new rows"), sorted(report.row_counts.items())))
    blocks += _describe_names("new tables", report.new_tables)
    blocks += _describe_names("new columns", report.new_columns)
    blocks += _describe_names("purged after a crash", report.purged_load_ids)
    blocks += _describe_refusals("set aside", report.set_aside)
    blocks += _describe_refusals("damaged, kept in quarantine", report.damages)
    return "\n\n".join(blocks)


def _describe_counts(report: LoadReport) -> str:
    return (
        f"{show_count(report.segment_count, 'segment')}, "
        f"{show_count(report.delivery_count, 'delivery', 'deliveries')}: "
        f"{show_count(report.event_count, 'new event')}, "
        f"{show_count(report.repeat_count, 'repeat')}, "
        f"{show_count(report.conflict_count, 'conflict')}, {len(report.set_aside):,} set aside "
        f"({report.duration_s:.1f} s)"
    )


def _describe_names(title: str, names: list[str]) -> list[str]:
    if not names:
        return []
    text = f"{title} ({len(names)}): {', '.join(names)}"
    return [textwrap.fill(text, LINE_WIDTH, subsequent_indent="  ", break_long_words=False)]


def _describe_refusals(title: str, refusals: list[Refusal]) -> list[str]:
    if not refusals:
        return []
    lines = [f"{title} ({len(refusals)}):"]
    for refusal in refusals[:SHOWN_REFUSALS]:
        name = f" {refusal.event_id}" if refusal.event_id else ""
        lines.append(f"  {refusal.segment}, {refusal.place}{name}: {refusal.reason}")
    if len(refusals) > SHOWN_REFUSALS:
        lines.append(f"  and {len(refusals) - SHOWN_REFUSALS} more")
    return ["\n".join(lines)]
