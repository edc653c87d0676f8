"""A PostgreSQL server that the tests start and stop, and what its databases hold.

It needs Debian's package `postgresql`; without it the tests are skipped.
"""

from __future__ import annotations

import getpass
import json
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from itertools import count
from pathlib import Path

import pytest

from pipelines.destination import DEFAULT_DATASET

pytest.importorskip("psycopg2", reason="install the extra: midbound-warehouse[postgres]")
import psycopg2
import psycopg2.extras

Row = dict[str, object]
Tables = dict[str, list[Row]]

# What differs between two loads of the same spool: when, and under which number.
OWN_TO_A_LOAD = {"_dlt_load_id", "loaded_at"}


@dataclass(frozen=True)
class Database:
    """One database of the server."""

    url: str

    @property
    def environ(self) -> dict[str, str]:
        """What says to load there."""
        return {
            "DESTINATION__WAREHOUSE__DESTINATION_TYPE": "postgres",
            "DESTINATION__WAREHOUSE__CREDENTIALS": self.url,
        }

    def execute(self, statement: str) -> list[tuple[object, ...]]:
        with closing(psycopg2.connect(self.url)) as connection:
            connection.autocommit = True
            # As DuckDB does: the text, for `spell` to read.
            psycopg2.extras.register_default_jsonb(connection, loads=str)
            with connection.cursor() as cursor:
                cursor.execute("SET TIME ZONE 'UTC'")
                cursor.execute(statement)
                return cursor.fetchall() if cursor.description else []

    def tables(self) -> Tables:
        return read_tables(self.execute)

    def settled_tables(self) -> Tables:
        """Read the tables after a run, in which nothing may be left of another."""
        complete = f"SELECT load_id FROM {DEFAULT_DATASET}._dlt_loads WHERE status = 0"
        listed = self.execute(complete)
        assert len(set(listed)) == len(listed)
        told = self.execute(f"SELECT load_id, status FROM {DEFAULT_DATASET}.loads")
        assert sorted(told) == sorted((load_id, "done") for (load_id,) in listed)
        tables = self.tables()
        for table in tables:
            name = f"{DEFAULT_DATASET}.{table}"
            orphans = f"SELECT * FROM {name} WHERE _dlt_load_id NOT IN ({complete})"
            assert self.execute(orphans) == [], table
        return tables


@dataclass(frozen=True)
class PostgresServer:
    """A server of the test's own, below `home`."""

    home: Path
    programs: Path
    user: str
    port: int
    password: str

    def create(self) -> None:
        password_file = self.home / "password"
        password_file.write_text(self.password)
        shutil.chown(password_file, self.user)
        trust = ["--auth=scram-sha-256", "--username=postgres"]
        self._run("initdb", *trust, "--pwfile", str(password_file))

    def start(self) -> None:
        options = f"-c listen_addresses=127.0.0.1 -p {self.port} -k {self.home} -c fsync=off"
        log = str(self.home / "log")
        self._run("pg_ctl", "start", "--wait", "--log", log, "--options", options)

    def stop(self) -> None:
        """End it as a crash would."""
        self._run("pg_ctl", "stop", "--wait", "--mode=immediate")

    def database(self, name: str) -> Database:
        return Database(f"postgresql://postgres:{self.password}@127.0.0.1:{self.port}/{name}")

    def new_database(self) -> Database:
        name = f"test_{next(_numbers)}"
        self.database("postgres").execute(f"CREATE DATABASE {name}")
        return self.database(name)

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self.programs / program), "--pgdata", str(self.home / "data"), *arguments]
        as_user = {"user": self.user, "extra_groups": []} if os.geteuid() == 0 else {}
        subprocess.run(command, cwd=self.home, check=True, capture_output=True, **as_user)


_numbers = count()


def find_programs() -> Path | None:
    """Find the newest server's programs: Debian keeps them off the PATH."""
    found = Path("/usr/lib/postgresql").glob("*/bin")
    debian = sorted(found, key=lambda path: float(path.parent.name))
    on_path = shutil.which("initdb")
    return debian[-1] if debian else Path(on_path).parent if on_path else None


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    programs = find_programs()
    if programs is None:
        pytest.skip("no PostgreSQL server on this machine: apt-get install postgresql")
    # PostgreSQL refuses to run as root; and a socket's path must be short.
    user = "postgres" if os.geteuid() == 0 else getpass.getuser()
    home = Path(tempfile.mkdtemp(prefix="midbound-postgres-"))
    shutil.chown(home, user)
    server = PostgresServer(home, programs, user, free_port(), secrets.token_hex())
    server.create()
    server.start()
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(home)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def database(postgres_server: PostgresServer) -> Database:
    """An empty database, one a test."""
    return postgres_server.new_database()


@pytest.fixture
def postgres(database: Database, monkeypatch: pytest.MonkeyPatch) -> Database:
    """The same, and the environment says to load there."""
    for name, value in database.environ.items():
        monkeypatch.setenv(name, value)
    return database


def read_tables(query) -> Tables:
    """Read every payload table and `deliveries`, in one spelling for both databases."""
    columns: dict[str, dict[str, str]] = {}
    for table, column, data_type in query(
        "SELECT table_name, column_name, data_type FROM information_schema.columns "
        f"WHERE table_schema = '{DEFAULT_DATASET}'"
    ):
        if not table.startswith("_dlt") and table != "loads":
            columns.setdefault(table, {})[column] = data_type
    return {table: read_rows(query, table, types) for table, types in columns.items()}


def read_rows(query, table: str, types: Mapping[str, str]) -> list[Row]:
    names = sorted(set(types) - OWN_TO_A_LOAD)
    quoted = ", ".join(f'"{name}"' for name in names)
    rows = query(f'SELECT {quoted} FROM {DEFAULT_DATASET}."{table}"')
    return sorted(
        (
            {name: spell(value, types[name]) for name, value in zip(names, row, strict=True)}
            for row in rows
        ),
        key=lambda row: str(row["_dlt_id"]),
    )


def spell(value: object, data_type: str) -> object:
    if data_type in {"JSON", "jsonb"} and value is not None:
        return json.loads(str(value), parse_int=Decimal, parse_float=Decimal)
    return value.astimezone(UTC) if isinstance(value, datetime) else value
