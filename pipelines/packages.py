"""Load segments in bounded packages, each exactly once.

The order is the proof. The spool is the truth, the warehouse is the memory, dlt's
working directory is thrown away before and after:

1. A load that was announced and never done is purged, by its load id.
2. Of a package's lines, those that a completed load has recorded are left out.
3. dlt extracts and normalizes the rest; the load is announced under its load id; dlt
   loads it.
4. The rows that arrived are counted against the rows that were sent. If they differ
   (a job that dlt retried after its commit, say) the load is purged and fails.
5. The load is done, and only then are its segments marked loaded. A crash before that
   loads them again, and point 2 leaves nothing to write.
"""

from __future__ import annotations

import gc
import json
import platform
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import chain

from pipelines.ahead import Blocks, Package
from pipelines.build import (
    NamedTable,
    TableBuilder,
    build_deliveries,
    empty_table,
    gather,
)
from pipelines.columns import ColumnTypes
from pipelines.destination import open_pipeline
from pipelines.errors import LoadError, VerificationError
from pipelines.midbound import midbound
from pipelines.naming import declared_tables
from pipelines.patience import make_patience, named_failures
from pipelines.progress import Progress
from pipelines.report import LoadReport, Refusal
from pipelines.schema import LOADS_TABLE
from pipelines.take import Decision, decide
from pipelines.warehouse import StoredTypes, Warehouse
from receiver.segment import SegmentContent, Spool, mark_loaded, quarantine

# In the path of a working directory: dlt makes templates of it, DuckDB patterns, both make SQL.
_UNUSABLE = re.compile(r"[%*?\[\]{}']")


def load_packages(
    spool: Spool, packages: Iterable[Package], report: LoadReport, progress: Progress
) -> None:
    """Load packages of sealed segments, adding to the report what came of them.

    Raises `LoadError`; what is in the report by then is loaded and stays.
    """
    working_directory = (spool.path / "work").absolute()
    if found := _UNUSABLE.search(str(working_directory)):
        raise LoadError(
            f"the path {working_directory} holds a {found[0]}, which dlt or DuckDB would take for "
            "a pattern; move the directory, or set spool.path (SPOOL__PATH) to one without it"
        )
    shutil.rmtree(working_directory, ignore_errors=True)
    try:
        with named_failures():
            warehouse = Warehouse(open_pipeline(working_directory))
            loader = PackageLoader(spool, warehouse, report, progress)
            loader.prepare()
            for number, package in enumerate(packages):
                if number:
                    gc.collect()  # nothing else does, meanwhile
                segment_count = len(package.segments)
                loader.load(package)
                progress.advance(segment_count)
    finally:
        shutil.rmtree(working_directory, ignore_errors=True)


@dataclass(slots=True)
class _Sent:
    """What was handed to dlt for one load; `loads` is written around it, not by it."""

    row_counts: Counter[str] = field(default_factory=Counter)

    def watch(self, tables: Iterator[NamedTable]) -> Iterator[NamedTable]:
        for name, table in tables:
            if name != LOADS_TABLE:
                self.row_counts[name] += table.num_rows
            yield name, table


class PackageLoader:
    """Load packages, one after the other, into one warehouse."""

    def __init__(
        self, spool: Spool, warehouse: Warehouse, report: LoadReport, progress: Progress
    ) -> None:
        self._spool = spool
        self._warehouse = warehouse
        self._report = report
        self._progress = progress
        self._patient = make_patience(progress)
        self._stored: StoredTypes = {}
        self._types = ColumnTypes()

    def prepare(self) -> None:
        """Take the schema back from the warehouse, and purge what never completed."""
        with self._held():
            self._patient(self._warehouse.sync)
            for load_id in self._patient(self._warehouse.unfinished_loads):
                self._progress.say(f"purging the unfinished load {load_id}")
                self._patient(self._warehouse.purge, load_id)
                self._report.purged_load_ids.append(load_id)
            self._stored = self._warehouse.stored_types()
        self._types = ColumnTypes(self._stored)

    @contextmanager
    def _held(self) -> Iterator[None]:
        """Hold the warehouse for one step of the run: what DuckDB keeps in memory ends with it."""
        with ExitStack() as stack:
            self._patient(lambda: stack.enter_context(self._warehouse.hold()))
            yield

    def load(self, package: Package) -> None:
        """Load one package of whole segments, verify it, and mark the segments loaded."""
        names = [segment.name for segment in package.segments]
        report = LoadReport(segment_count=len(names), damages=self._keep_damages(package.segments))
        with self._held():
            event_ids = [line.event_id for line in package.lines]
            holdings = self._patient(self._warehouse.holdings, event_ids, names)
            decisions = decide(package.lines, holdings, package.flat_lines())
            if decisions:
                self._load_decisions(decisions, package, report)
                self._patient(self._warehouse.join_row_groups)
        mark_loaded(self._spool.ready / f"{name}.jsonl" for name in names)
        self._report.add(report)

    def _load_decisions(
        self, decisions: list[Decision], package: Package, report: LoadReport
    ) -> None:
        started_at = datetime.now(UTC)
        sent = _Sent()
        load_id = self._extract(sent.watch(self._tables(decisions, package.blocks, started_at)))
        report.load_ids.append(load_id)
        report.add_decisions(decisions)
        decisions.clear()
        package.clear()
        self._announce(load_id, started_at)
        self._progress.say(f"loading {sent.row_counts.total()} rows")
        self._patient(self._warehouse.pipeline.load)
        self._verify(load_id, sent)

        report.row_counts = dict(+sent.row_counts)
        self._note_new_columns(report)
        self._patient(self._warehouse.finish, load_id, _loads_row(report, started_at))
        self._check_done(load_id)

    def _tables(
        self, decisions: list[Decision], blocks: Blocks, loaded_at: datetime
    ) -> Iterator[NamedTable]:
        """Yield what the load consists of; missing tables are created by empty ones."""
        empty = (
            (name, empty_table(columns))
            for name, columns in declared_tables().items()
            if name not in self._stored
        )
        yield from gather(chain(empty, TableBuilder(self._types).build(decisions, blocks)))
        # Last, because building may set an event aside.
        yield build_deliveries(decisions, loaded_at)

    def _extract(self, tables: Iterator[NamedTable]) -> str:
        self._progress.say("parsing and flattening")
        pipeline, file_format = self._warehouse.pipeline, self._warehouse.file_format
        source = midbound(tables, self._types)
        info = pipeline.extract(source, loader_file_format=file_format)
        pipeline.normalize()
        (load_id,) = info.loads_ids
        return load_id

    def _announce(self, load_id: str, started_at: datetime) -> None:
        if not self._stored:
            self._patient(self._warehouse.pipeline.sync_schema)
        row = {"host": platform.node(), "started_at": started_at}
        self._patient(self._warehouse.announce, load_id, row)

    def _verify(self, load_id: str, sent: _Sent) -> None:
        arrived = self._patient(self._warehouse.count_rows, load_id, list(sent.row_counts))
        is_complete = self._patient(self._warehouse.is_complete, load_id)
        if arrived == dict(sent.row_counts) and is_complete:
            return
        self._patient(self._warehouse.purge, load_id)
        wrong = {
            table: f"{arrived.get(table, 0)} of {count}"
            for table, count in sent.row_counts.items()
            if arrived.get(table, 0) != count
        }
        raise VerificationError(
            f"load {load_id} brought {wrong or 'no completed load'}; its rows were taken back, "
            "and its segments wait for the next run: load again"
        )

    def _check_done(self, load_id: str) -> None:
        """Look once more: a loader elsewhere may have purged what it took for a leftover."""
        if not self._patient(self._warehouse.is_done, load_id):
            raise VerificationError(
                f"load {load_id} was taken back by another loader on the same warehouse; let only "
                "one load at a time, then load again: its segments wait"
            )

    def _note_new_columns(self, report: LoadReport) -> None:
        now = self._warehouse.stored_types()
        for table, columns in now.items():
            known = self._stored.get(table)
            if known is None:
                report.new_tables.append(table)
            else:
                report.new_columns += [f"{table}.{name}" for name in columns if name not in known]
        self._stored = now

    def _keep_damages(self, segments: Sequence[SegmentContent]) -> list[Refusal]:
        damages: list[Refusal] = []
        for segment in segments:
            for damage in segment.damages:
                data = segment.data[damage.offset : damage.end]
                quarantine(self._spool, segment.name, damage, data)
                damages.append(
                    Refusal(
                        segment=segment.name,
                        place=f"offset {damage.offset}, {damage.size_bytes} bytes",
                        reason=damage.reason,
                    )
                )
        return damages


def _loads_row(report: LoadReport, started_at: datetime) -> dict[str, object]:
    finished_at = datetime.now(UTC)
    return {
        "finished_at": finished_at,
        "duration_s": (finished_at - started_at).total_seconds(),
        "segments": report.segment_count,
        "deliveries": report.delivery_count,
        "events": report.event_count,
        "repeats": report.repeat_count,
        "conflicts": report.conflict_count,
        "set_aside": len(report.set_aside),
        "damages": len(report.damages),
        "row_counts": json.dumps(report.row_counts),
        "new_tables": json.dumps(report.new_tables),
        "new_columns": json.dumps(report.new_columns),
    }
