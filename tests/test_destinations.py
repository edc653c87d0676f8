"""The warehouses that need an account: what would be created and loaded there, rendered by
dlt's own clients without a connection.

The schema is the one that the extract and normalize of a load of the sample make for that
destination, configured as `.dlt/example.secrets.toml` says; only the last step, to send the
statements and files, is left out.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from dlt.common.destination import Destination
from dlt.common.destination.client import JobClientBase
from dlt.destinations.job_client_impl import SqlJobClientBase
from spooling import SAMPLE, fill_spool

from pipelines import schema
from pipelines.ahead import ReadAhead
from pipelines.destination import DEFAULT_DATASET, open_pipeline
from pipelines.naming import MAX_NAME_LENGTH, declared_tables
from pipelines.packages import PackageLoader
from pipelines.progress import Silent
from pipelines.report import LoadReport
from pipelines.take import Holdings, decide
from pipelines.warehouse import Warehouse, _select_where_in
from receiver.segment import Spool

EXAMPLE = Path(__file__).parents[1] / ".dlt" / "example.secrets.toml"


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a destination is to be given."""

    driver: str
    file_format: str
    types: dict[str, str]  # by dlt's name of the type
    load_id_type: str


FACTS = {
    "bigquery": Facts(
        driver="google.cloud.bigquery",
        file_format="jsonl",
        types={
            "text": "STRING",
            "bigint": "INT64",
            "double": "FLOAT64",
            "bool": "BOOL",
            "timestamp": "TIMESTAMP",
            "json": "JSON",
        },
        load_id_type="STRING(64)",
    ),
    "snowflake": Facts(
        driver="snowflake.connector",
        file_format="jsonl",
        types={
            "text": "VARCHAR",
            "bigint": "NUMBER(19,0)",
            "double": "FLOAT",
            "bool": "BOOLEAN",
            "timestamp": "TIMESTAMP_LTZ",
            "json": "VARIANT",
        },
        load_id_type="VARCHAR(64)",
    ),
    "motherduck": Facts(
        driver="duckdb",
        file_format="parquet",
        types={
            "text": "VARCHAR",
            "bigint": "BIGINT",
            "double": "DOUBLE",
            "bool": "BOOLEAN",
            "timestamp": "TIMESTAMP WITH TIME ZONE",
            "json": "JSON",
        },
        load_id_type="VARCHAR",
    ),
    "redshift": Facts(
        driver="psycopg2",
        file_format="insert_values",
        types={
            "text": "varchar(max)",
            "bigint": "bigint",
            "double": "double precision",
            "bool": "boolean",
            "timestamp": "timestamp with time zone",
            "json": "super",
        },
        load_id_type="varchar(64)",
    ),
}
# Of those that the example does not show.
CREDENTIALS = {
    "motherduck": "md:midbound?motherduck_token=none",
    "redshift": "redshift://loader:none@127.0.0.1:5439/analytics",
}

Tables = dict[str, dict[str, str]]


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """What a load of the sample would send: statements, and files by table."""

    statements: list[str]
    files: dict[str, list[Path]]

    @property
    def tables(self) -> Tables:
        """The type of each column of each table, with the names as written."""
        return dict(map(read_create_table, self.statements))


@pytest.fixture(params=list(FACTS))
def kind(request: pytest.FixtureRequest) -> str:
    """A destination, with the environment set to it."""
    return str(request.param)


@pytest.fixture
def rendered(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rendered:
    pytest.importorskip(FACTS[kind].driver, reason=f"install: midbound-warehouse[{kind}]")
    configure(kind, monkeypatch)
    settings = fill_spool(tmp_path / "spool", [("evt_sample", SAMPLE)])
    warehouse = Warehouse(open_pipeline(tmp_path / "work"))
    loader = PackageLoader(Spool(settings.spool.path), warehouse, LoadReport(), Silent())
    with ReadAhead(Spool(settings.spool.path).ready_segments()) as packages:
        packages.allow_flattening()
        (package,) = packages
        decisions = decide(package.lines, Holdings())
        load_id = loader._extract(loader._tables(decisions, package.blocks, datetime.now(UTC)))
    pipeline = warehouse.pipeline
    client, _ = pipeline._get_destination_clients(pipeline.default_schema)
    return Rendered(statements=render(client), files=list_files(tmp_path, load_id))


def configure(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    prefix = "DESTINATION__WAREHOUSE__"
    monkeypatch.setenv(prefix + "DESTINATION_TYPE", kind)
    if kind in CREDENTIALS:
        monkeypatch.setenv(prefix + "CREDENTIALS", CREDENTIALS[kind])
        return
    for name, value in example_credentials(kind).items():
        monkeypatch.setenv(f"{prefix}CREDENTIALS__{name.upper()}", value)


def example_credentials(kind: str) -> dict[str, str]:
    """Read the paragraph of the example that is about this destination."""
    paragraphs = EXAMPLE.read_text(encoding="utf-8").split("\n\n")
    (about,) = [text for text in paragraphs if text.startswith(f"# {kind}:")]
    _, *lines = about.splitlines()
    table = tomllib.loads("\n".join(line.removeprefix("# ") for line in lines))
    return table["destination"]["warehouse"]["credentials"]


def render(client: JobClientBase) -> list[str]:
    assert isinstance(client, SqlJobClientBase)
    statements, _ = client._build_schema_update_sql((table, {}) for table in declared_tables())
    return statements


def list_files(directory: Path, load_id: str) -> dict[str, list[Path]]:
    files: dict[str, list[Path]] = {}
    for path in directory.glob(f"work/midbound/load/normalized/{load_id}/new_jobs/*"):
        files.setdefault(path.name.partition(".")[0], []).append(path)
    return files


def read_create_table(statement: str) -> tuple[str, dict[str, str]]:
    """Take a CREATE TABLE apart, one column a line as dlt writes it."""
    head, *lines = statement.splitlines()
    found = re.search(r'[`"]([^`"]+)[`"] \($', head)
    assert found, head
    columns = [
        re.match(r'[`"](?P<name>[^`"]+)[`"] (?P<type>.*?)(  |$|\)$)', line) for line in lines
    ]
    assert all(columns), statement
    return found[1], {column["name"]: column["type"] for column in columns if column}


def test_every_declared_table_is_created_with_every_column_and_its_type(
    kind: str, rendered: Rendered
) -> None:
    facts = FACTS[kind]
    spell = str.upper if kind == "snowflake" else str
    assert rendered.tables == {
        spell(table): {spell(name): facts.types[node.data_type] for name, node in columns.items()}
        | {spell("_dlt_load_id"): facts.load_id_type}
        for table, columns in declared_tables().items()
    }


def test_the_warehouse_is_asked_also_where_dlt_knows_no_literals(kind: str) -> None:
    client = Asked(kind)
    names = ["it's", "me"]
    _select_where_in(client, "segment, line", "segment", names)
    escape = client.capabilities.escape_literal
    assert (escape is None) == (kind == "snowflake")
    if escape is None:
        assert "segment IN (%s, %s)" in client.query
        assert client.values == (*names,)
    else:
        assert f"segment IN ({escape(names[0])}, {escape(names[1])})" in client.query
        assert client.values == ()


class Asked:
    """A client that only writes down what it is asked."""

    def __init__(self, kind: str) -> None:
        self.capabilities = Destination.from_reference(kind).capabilities()
        self.query = ""
        self.values: tuple[object, ...] = ()

    def make_qualified_table_name(self, table: str) -> str:
        return table

    def escape_column_name(self, column: str) -> str:
        return column

    def execute_sql(self, query: str, *values: object) -> list[object]:
        self.query, self.values = query, values
        return []


def test_names_are_short_enough_for_any_warehouse(rendered: Rendered) -> None:
    names = [name for table, columns in rendered.tables.items() for name in (table, *columns)]
    assert max(map(len, names)) <= MAX_NAME_LENGTH
    assert all(DEFAULT_DATASET in statement.lower() for statement in rendered.statements)


def test_files_are_in_the_format_that_the_destination_prefers(
    kind: str, rendered: Rendered
) -> None:
    # Not what dlt writes fastest: BigQuery refuses parquet where a table has a JSON column.
    suffixes = {
        path.name.removesuffix(".gz").rpartition(".")[2]
        for table, paths in rendered.files.items()
        for path in paths
        if not table.startswith("_dlt")
    }
    assert suffixes == {FACTS[kind].file_format}
    assert set(rendered.files) >= {schema.ROOT_TABLE, schema.DELIVERIES_TABLE, "page_events"}
