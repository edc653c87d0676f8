"""The ways to bring the same events into DuckDB, each to be run in a process of its own.

    python ways_to_load.py WAY DIRECTORY

DIRECTORY holds `events.jsonl` (one body a line), `spool/ready/` (the same events as sealed
segments) and `one/ready/` (the first of them). Each way starts with an empty warehouse, loads
everything once, and prints the seconds that it took, imports included: that is what a scheduler
waits for.

Two ways are parts of ours, to see what no work on the rest could save: what one event takes, which
is Python, dlt and a table for each of twenty; and DuckDB's part, with the rows at hand.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from importlib.abc import MetaPathFinder
from pathlib import Path

EVENTS = Path("events.jsonl")
BATCH = 1000  # events that dlt is handed at once: lists, not rows, as its documentation advises


def ours() -> None:
    """`midbound load`: every checksum verified, exactly once, deliveries recorded."""
    from pipelines.load import run_load
    from receiver.config import read_settings

    run_load(read_settings())


def dlt_out_of_the_box() -> None:
    """What the documentation shows first: dicts in, everything else by default."""
    import dlt

    _pipeline(dlt).run(_documents(), table_name="events", write_disposition="append")


def dlt_at_its_best() -> None:
    """The same with parquet files, and two processes that normalize rotated files."""
    os.environ["SOURCES__DATA_WRITER__FILE_MAX_ITEMS"] = "2500"
    os.environ["NORMALIZE__WORKERS"] = "2"
    import dlt

    _pipeline(dlt).run(
        _documents(),
        table_name="events",
        write_disposition="append",
        loader_file_format="parquet",
    )


def duckdb_alone() -> None:
    """`read_json` and `unnest`: checks nothing, deduplicates nothing, keeps no state."""
    import duckdb
    from duckdb_alone import statements

    with duckdb.connect("alone.duckdb") as connection:
        for statement in statements(EVENTS):
            connection.execute(statement)


def one_event() -> None:
    """`midbound load` of a single event."""
    os.environ["SPOOL__PATH"] = "one"
    ours()


def duckdb_storing() -> None:
    """DuckDB alone again, but with our finished rows at hand, in a file of its own."""
    import duckdb

    from pipelines.destination import DEFAULT_DATABASE, DUCKDB_PRAGMAS

    with duckdb.connect("stored.duckdb") as connection:
        for pragma in DUCKDB_PRAGMAS:
            connection.execute(f"SET {pragma}")
        connection.execute(f"ATTACH '{DEFAULT_DATABASE}' AS loaded (READ_ONLY)")
        tables = connection.execute(
            "SELECT schema_name, table_name FROM duckdb_tables() WHERE database_name = 'loaded'"
        )
        for schema, table in tables.fetchall():
            connection.execute(f"CREATE TABLE {table} AS FROM loaded.{schema}.{table}")


def floor() -> None:
    """Read each line and parse it, on one core: no way through Python can be faster."""
    import orjson

    with EVENTS.open("rb") as lines:
        for line in lines:
            orjson.loads(line)


WAYS: dict[str, Callable[[], None]] = {
    "ours": ours,
    "dlt out of the box": dlt_out_of_the_box,
    "dlt at its best": dlt_at_its_best,
    "DuckDB alone": duckdb_alone,
    "floor": floor,
    "ours, one event": one_event,
    "DuckDB, storing": duckdb_storing,
}
# What has to be there first; it is not timed.
PREPARATIONS: dict[str, Callable[[], None]] = {"DuckDB, storing": ours}


def _pipeline(dlt):
    return dlt.pipeline(
        "peer",
        pipelines_dir=str(Path("work").absolute()),
        destination=dlt.destinations.duckdb("peer.duckdb"),
        dataset_name="peer_data",
    )


def _documents() -> Iterator[list[object]]:
    import orjson

    batch: list[object] = []
    with EVENTS.open("rb") as lines:
        for line in lines:
            batch.append(orjson.loads(line))
            if len(batch) == BATCH:
                yield batch
                batch = []
    if batch:
        yield batch


def _start_over() -> None:
    for name in ("midbound.duckdb", "peer.duckdb", "alone.duckdb", "stored.duckdb"):
        Path(name).unlink(missing_ok=True)
        Path(f"{name}.wal").unlink(missing_ok=True)
    shutil.rmtree("work", ignore_errors=True)
    for spool in (Path("spool"), Path("one")):
        for path in spool.glob("loaded/*"):
            path.rename(spool / "ready" / path.name)


class WithoutPandas(MetaPathFinder):
    """The extra `load` does not bring pandas, which DuckDB would import for half a second."""

    def find_spec(self, name: str, *_: object) -> None:
        if name == "pandas":
            raise ModuleNotFoundError(name)


if __name__ == "__main__":
    sys.meta_path.insert(0, WithoutPandas())
    way = WAYS[sys.argv[1]]
    os.chdir(sys.argv[2])
    _start_over()
    PREPARATIONS.get(sys.argv[1], lambda: None)()
    started_s = time.perf_counter()
    way()
    print(f"seconds {time.perf_counter() - started_s:.3f}")
