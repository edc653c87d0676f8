"""PostgreSQL, a real server: the destination is switched by configuration alone, and the
tables are those of DuckDB, value for value.

The server is Debian's, started on a free port as an unprivileged user and stopped at the
end. Without its programs these tests are skipped.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import duckdb
import pytest
from postgres_server import Database, Tables, database, postgres, postgres_server, read_tables
from spooling import SAMPLE, fill_spool, sample_event

import pipelines
from pipelines.destination import DEFAULT_DATASET
from pipelines.load import run_load
from pipelines.naming import MAX_NAME_LENGTH
from receiver.config import Settings, SpoolSettings

__all__ = ["database", "postgres", "postgres_server"]  # fixtures


# What is loaded


def odd_bodies() -> list[tuple[str, bytes]]:
    """Make one event for each thing that a column or a copy into PostgreSQL could trip over."""

    def changed(**session: object) -> bytes:
        event = sample_event()
        event["data"]["session"] |= session
        return json.dumps(event).encode()

    unknown = {"plan": "pro", "seats": 3, "tags": ["a", None, "b"], "grid": [[1, 2], [3]]}
    free_form = {"key with space": {"deep": [1, 2.5, "x\u0000y", "\ud800"]}, "": "", "E": 1e300}
    return [
        ("evt_unknown", changed(crm=unknown)),
        ("evt_unknown_later", changed(crm={"plan": 7, "owner": {"name": "Ann"}})),
        ("evt_variants", changed(createdAt="soon", userAgent=12, utm="none", screen=[1, 2])),
        (
            "evt_numbers",
            changed(screen={"width": 2**53 + 1, "height": 1.5}, big=10**30, tiny=5e-324),
        ),
        (
            "evt_nul_and_surrogate",
            changed(landingTitle="a\u0000b", referrer="\ud800", **{"k\u0000": 1}),
        ),
        ("evt_long_keys", changed(**{"k" * 300: "one", "k" * 299 + "z": "two"})),
        ("evt_free_form", changed(options=free_form)),
        ("evt_empty_texts", changed(referrer="", landingTitle=" ", timezone="NULL")),
        (
            "evt_copy_marks",
            changed(referrer="\\N", landingTitle='a\n\\.\n"b",\t\\', timezone="\r\n"),
        ),
        ("evt_instants", changed(createdAt=-62135596800000, endedAt=253402300799999)),
        ("evt_'\\%s%%;--", changed()),
        ("evt_not_json", b"not json"),
    ]


BODIES = [("evt_sample", SAMPLE), *odd_bodies()]
LOADABLE_COUNT = len(BODIES) - 1


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A spool with all of this, to be copied: its segment's name is in the rows."""
    return fill_spool(tmp_path_factory.mktemp("filled") / "spool", BODIES).spool.path


@pytest.fixture
def settings(filled: Path, tmp_path: Path) -> Settings:
    """Settings for a copy of the spool, in `tmp_path`."""
    return copy_spool(filled, tmp_path)


def copy_spool(spool: Path, directory: Path) -> Settings:
    copy = shutil.copytree(spool, directory / "spool")
    return Settings(spool=SpoolSettings(path=copy))


@pytest.fixture(scope="module")
def in_duckdb(filled: Path, tmp_path_factory: pytest.TempPathFactory) -> Tables:
    """The rows that the same spool becomes in DuckDB."""
    root = tmp_path_factory.mktemp("duckdb")
    file = root / "midbound.duckdb"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DESTINATION__WAREHOUSE__CREDENTIALS", str(file))
        run_load(copy_spool(filled, root))
    with duckdb.connect(str(file), read_only=True) as connection:
        connection.execute("SET TimeZone = 'UTC'")

        def query(statement: str) -> list[tuple[object, ...]]:
            return connection.execute(statement).fetchall()

        return read_tables(query)


def differences(loaded: Tables, wanted: Tables) -> list[tuple[object, ...]]:
    """List each value that differs, so that a failure can be read; the same rows must be there."""
    for table, rows in wanted.items():
        assert [row["_dlt_id"] for row in loaded[table]] == [row["_dlt_id"] for row in rows], table
        assert [sorted(row) for row in loaded[table]] == [sorted(row) for row in rows], table
    return [
        (table, row["event_id"], name, mine[name], value)
        for table, rows in wanted.items()
        for mine, row in zip(loaded[table], rows, strict=True)
        for name, value in row.items()
        if mine[name] != value
    ]


# The proof


def test_the_environment_alone_switches_and_every_value_is_that_of_duckdb(
    postgres: Database, settings: Settings, in_duckdb: Tables
) -> None:
    report = run_load(settings)
    assert report.event_count == LOADABLE_COUNT
    assert [refusal.event_id for refusal in report.set_aside] == ["evt_not_json"]
    loaded = postgres.tables()
    assert sorted(loaded) == sorted(in_duckdb)
    assert differences(loaded, in_duckdb) == []
    assert sum(map(len, loaded.values())) > 400


def test_the_odd_values_are_there_at_all(in_duckdb: Tables) -> None:
    events = {str(row["event_id"]): row for row in in_duckdb["events"]}
    assert events["evt_unknown"]["session__crm__plan"] == "pro"
    assert events["evt_unknown_later"]["session__crm__plan__v_bigint"] == 7
    assert events["evt_variants"]["session__created_at__v_text"] == "soon"
    assert events["evt_nul_and_surrogate"]["session__landing_title"] == "a\ufffdb"
    assert events["evt_empty_texts"]["session__referrer"] == ""
    assert events["evt_free_form"]["session__options"]["E"] == Decimal("1e300")
    assert [row["value"] for row in in_duckdb["events__session__crm__tags"]] != []


def test_secrets_toml_alone_switches(database: Database, tmp_path: Path) -> None:
    write_secrets(tmp_path, database.url)
    fill_spool(tmp_path / "spool", BODIES[:1])
    loaded = run_python(LOAD, tmp_path)
    assert (loaded.returncode, loaded.stdout.decode()) == (0, "1 events\n"), loaded.stderr
    assert len(database.tables()["page_events"]) == 3
    assert not list(tmp_path.glob("*.duckdb"))


def test_types_and_names_are_postgresqls_own(postgres: Database, settings: Settings) -> None:
    run_load(settings)
    columns = postgres.execute(
        "SELECT table_name, column_name, data_type FROM information_schema.columns "
        f"WHERE table_schema = '{DEFAULT_DATASET}'",
    )
    types = {(table, column): data_type for table, column, data_type in columns}
    assert types["events", "session__options"] == "jsonb"
    assert types["page_events", "props"] == "jsonb"
    assert types["page_events", "ts"] == "timestamp with time zone"
    assert types["companies", "web_traffic__monthly_visitors"] == "double precision"
    assert types["companies", "employee_count"] == "bigint"
    assert types["events", "session__network__is_eu"] == "boolean"
    # What PostgreSQL cuts has exactly its 63 bytes; nothing of ours may be cut by it.
    lengths = {len(str(name).encode()) for key in types for name in key}
    assert MAX_NAME_LENGTH - 4 <= max(lengths) <= MAX_NAME_LENGTH


def test_redelivery_changes_no_row_and_is_recorded(postgres: Database, settings: Settings) -> None:
    run_load(settings)
    before = postgres.tables()
    fill_spool(settings.spool.path, BODIES)
    report = run_load(settings)
    after = postgres.tables()
    assert (report.event_count, report.repeat_count) == (0, LOADABLE_COUNT)
    assert len(after.pop("deliveries")) == len(before.pop("deliveries")) + len(BODIES)
    assert after == before


@pytest.mark.parametrize(
    "last_step",
    [
        pytest.param("dlt.destinations.job_client_impl:SqlJobClientBase.complete_load", id="rows"),
        pytest.param("pipelines.warehouse:Warehouse.finish", id="rows and their completion"),
    ],
)
def test_a_killed_load_is_purged_by_the_next(
    last_step: str,
    postgres: Database,
    settings: Settings,
    in_duckdb: Tables,
) -> None:
    directory = settings.spool.path.parent
    killed = run_python(KILL_AT.format(last_step=last_step) + LOAD, directory)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    left = postgres.execute(f"SELECT load_id, status FROM {DEFAULT_DATASET}.loads")
    assert [status for _, status in left] == ["started"]
    assert len(postgres.tables()["events"]) == LOADABLE_COUNT

    report = run_load(settings)

    assert report.purged_load_ids == [left[0][0]]
    assert differences(postgres.tables(), in_duckdb) == []
    loads = postgres.execute(f"SELECT load_id, status FROM {DEFAULT_DATASET}.loads")
    assert loads == [(report.load_ids[0], "done")]


def test_an_event_of_very_many_fields_fits_a_postgresql_row(
    postgres: Database, tmp_path: Path
) -> None:
    # 23 characters are the longest text that PostgreSQL cannot move out of the row's 8 KB.
    event = sample_event() | {"extra": {f"k{number}": "x" * 23 for number in range(1000)}}
    body = json.dumps(event).encode()
    assert run_load(fill_spool(tmp_path / "spool", [("evt_wide", body)])).event_count == 1
    ((row,),) = postgres.execute(f"SELECT to_jsonb(e) FROM {DEFAULT_DATASET}.events e")
    assert str(row).count("x" * 23) == 1000


# A load in a process of its own, which has only files or the environment to go by

LOAD = """
from receiver.config import read_settings
from pipelines.load import run_load
print(run_load(read_settings()).event_count, "events")
"""
KILL_AT = """
import os, pkgutil, signal
owner, _, name = "{last_step}".rpartition(".")
setattr(pkgutil.resolve_name(owner), name, lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
"""


def run_python(code: str, directory: Path) -> subprocess.CompletedProcess[bytes]:
    root = Path(pipelines.__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": str(root)}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=directory,
        env=environment,
        capture_output=True,
        check=False,
    )


def write_secrets(directory: Path, url: str) -> None:
    (directory / ".dlt").mkdir()
    (directory / ".dlt" / "secrets.toml").write_text(
        f'[destination.warehouse]\ndestination_type = "postgres"\ncredentials = "{url}"\n'
    )
