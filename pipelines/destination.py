"""Which warehouse it is, from the configuration alone, and how dlt is to treat it.

Where `destination.warehouse` says nothing, it is a DuckDB file in the working directory.
"""

from __future__ import annotations

import os
from pathlib import Path

import dlt
from dlt.common.destination import AnyDestination, TLoaderFileFormat
from dlt.destinations.impl.duckdb.configuration import DuckDbCredentials

from pipelines.secret_hints import remember_secret_hints

PIPELINE_NAME = "midbound"
# Not `midbound`: in a file midbound.duckdb that would be the name of the catalog too, and
# DuckDB refuses `midbound.events` as ambiguous.
DEFAULT_DATASET = "midbound_data"
DESTINATION_NAME = "warehouse"
DEFAULT_DATABASE = "midbound.duckdb"

# DuckDB's own default is insert_values, ten times slower than the parquet that the
# tables are extracted to.
FILE_FORMATS: dict[str, TLoaderFileFormat] = {
    "duckdb": "parquet",
    "motherduck": "parquet",
    "ducklake": "parquet",
}

# For the connections of a load alone. dlt lets DuckDB write everything to its log first and to its
# file at the end, once more and on one core; at DuckDB's own threshold it goes to the file at once.
# FSST takes a fifth of the time and makes the file 4 % smaller. A second thread brings no more rows
# to the file, and takes more of both cores. Each load leaves row groups of its own, and DuckDB
# would join them with their neighbours at once, which writes most rows several times.
DUCKDB_PRAGMAS = [
    "checkpoint_threshold='16MB'",
    "disabled_compression_methods='fsst'",
    "threads=1",
    "max_vacuum_tasks=0",
]
# For the load that joins them after all. What DuckDB reads for it would stay in memory, where it
# serves nothing.
DUCKDB_JOINING = ["RESET max_vacuum_tasks", "SET memory_limit = '512MB'"]


def open_pipeline(working_directory: Path) -> dlt.Pipeline:
    """Open the pipeline on the configured destination, with this working directory.

    The working directory is a throw-away cache: the schema and the state are taken back
    from the destination by `sync`.
    """
    remember_secret_hints()
    dlt.config["runtime.dlthub_telemetry"] = False
    dlt.config["normalize.parquet_normalizer.add_dlt_load_id"] = True
    if _configured_type() == "duckdb":
        # DuckDB stores one table after the other: two jobs wait for each other, and take more of
        # the cores and of memory. A server over the network is another matter.
        dlt.config["load.workers"] = 1
        dlt.config["data_writer.compression"] = "none"  # read once, on this machine
    return dlt.pipeline(
        PIPELINE_NAME,
        pipelines_dir=str(working_directory),
        destination=_configured_destination(),
        dataset_name=dataset_name(),
    )


def dataset_name() -> str:
    """Give the name of the schema that holds all tables."""
    return dlt.config.get("pipelines.midbound.dataset_name") or DEFAULT_DATASET


def has_own_destination() -> bool:
    """Tell whether a destination other than the default file is configured."""
    return _configured_type() != "duckdb" or bool(_configured_credentials())


def _configured_type() -> str:
    # An environment variable that is set to nothing, as CI systems do, is not set.
    return dlt.config.get("destination.warehouse.destination_type") or "duckdb"


def _configured_credentials() -> object:
    """Give the credentials as dlt finds them; True if the environment sets them by field."""
    fields = "DESTINATION__WAREHOUSE__CREDENTIALS__"
    found: object = dlt.secrets.get("destination.warehouse.credentials")
    return found or any(name.startswith(fields) for name in os.environ)


def _configured_destination() -> AnyDestination:
    kind, credentials = _configured_type(), _configured_credentials() or DEFAULT_DATABASE
    if kind != "duckdb" or not isinstance(credentials, str):
        return dlt.destination(DESTINATION_NAME, destination_type=kind)
    return dlt.destination(
        DESTINATION_NAME,
        destination_type=kind,
        credentials=DuckDbCredentials(credentials, pragmas=DUCKDB_PRAGMAS),
    )


def database_file() -> Path | None:
    """Give the DuckDB file, if that is the destination and known by its path."""
    credentials = _configured_credentials() or DEFAULT_DATABASE
    if _configured_type() != "duckdb" or not isinstance(credentials, str):
        return None
    return Path(credentials.removeprefix("duckdb:///"))
