"""One run: take what the spool holds sealed, bring it to the warehouse, mark it loaded.

This module stays light: a scheduler starts it all day, mostly to learn that nothing
waits, so what needs dlt is imported only when there is something to load.
"""

from __future__ import annotations

import time
from pathlib import Path

from pipelines.progress import Progress, Silent
from pipelines.report import LoadReport
from receiver.config import Settings
from receiver.recovery import recover
from receiver.segment import Spool, load_lock


def run_load(settings: Settings, progress: Progress | None = None) -> LoadReport:
    """Load every sealed segment of the spool, and report what came of it.

    Raises `BusyError` when another load is running, `LoadError` when the warehouse could
    not take the rows: nothing is lost then, and the next run goes on from there.
    """
    started_s = time.monotonic()
    spool = Spool(settings.spool.path)
    spool.create()
    report = LoadReport()
    with load_lock(spool):
        recover(spool)
        segments = spool.ready_segments()
        if segments:
            _load(spool, segments, report, progress or Silent())
    report.duration_s = time.monotonic() - started_s
    return report


def _load(spool: Spool, segments: list[Path], report: LoadReport, progress: Progress) -> None:
    from pipelines.ahead import ReadAhead  # noqa: PLC0415 see above
    from pipelines.memory import no_search_for_cycles  # noqa: PLC0415

    progress.start(len(segments))
    try:
        with no_search_for_cycles(), ReadAhead(segments) as packages:
            # Reading goes on while dlt is imported, which takes a second.
            from pipelines.packages import load_packages  # noqa: PLC0415

            packages.allow_flattening()
            load_packages(spool, packages, report, progress)
    finally:
        progress.close()
