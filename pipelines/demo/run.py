"""Run the whole line once: a real receiver, signed deliveries, a load, and an answer.

The events are the same every time, so a second run shows that repeats change nothing.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files

import duckdb

from pipelines.demo.generate import generate_events, sample_event
from pipelines.demo.send import Answers, Sender, plan
from pipelines.destination import (
    DEFAULT_DATABASE,
    DEFAULT_DATASET,
    dataset_name,
    has_own_destination,
)
from pipelines.exit_codes import ExitCode
from pipelines.load import run_load
from pipelines.progress import make_progress
from pipelines.report import LoadReport
from pipelines.text_table import format_table
from receiver.config import Settings
from receiver.errors import ConfigurationError, ReceiverError

EVENT_COUNT = 240
COMPANY_COUNT = 8
SEED = 7
START_TIMEOUT_S = 20.0


def add_arguments(_parser: argparse.ArgumentParser) -> None:
    """Declare the options of `midbound demo`: there are none."""


def run(_args: argparse.Namespace, settings: Settings) -> int:
    """Show the line at work, from the first delivery to the answer of a question."""
    _refuse_real_settings(settings)
    secret = "whsec_" + base64.b64encode(secrets.token_bytes(24)).decode()
    with _receiver(secret) as url:
        print(f"The receiver listens at {url}")
        answers = Sender(url, secret).post_all(
            plan(
                [sample_event(), *generate_events(EVENT_COUNT, SEED, company_count=COMPANY_COUNT)],
                repeat_share=0.1,
                bad_share=0.1,
                seed=SEED,
            )
        )
    _print_answers(answers)
    report = run_load(settings, make_progress())
    _print_load(report)
    _print_visitors()
    return ExitCode.DONE if _is_expected(answers) else ExitCode.FAILED


def _refuse_real_settings(settings: Settings) -> None:
    """Keep invented visitors out of a real spool and a real warehouse."""
    receiver = settings.receiver
    has_own_dataset = dataset_name() != DEFAULT_DATASET
    if (
        receiver.webhook_secret
        or receiver.tls_certificate
        or has_own_destination()
        or has_own_dataset
    ):
        raise ConfigurationError(
            "a real receiver or warehouse is configured here, and the demo would mix invented "
            "visitors into it; run it in a fresh clone"
        )


@contextmanager
def _receiver(secret: str) -> Iterator[str]:
    """Start `midbound receive` on a free port, and stop it so that it seals."""
    port = _free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli", "receive"],
        # Whatever else is configured, the sender below finds it here and signs this way.
        env=os.environ
        | {
            "RECEIVER__WEBHOOK_SECRET": secret,
            "RECEIVER__KEY_DERIVATION": "both",
            "RECEIVER__HOST": "127.0.0.1",
            "RECEIVER__PORT": str(port),
        },
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        _wait_until_ready(process, port)
        yield f"http://127.0.0.1:{port}/webhooks/midbound"
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=START_TIMEOUT_S)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _wait_until_ready(process: subprocess.Popen[str], port: int) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s and process.poll() is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
        try:
            connection.request("GET", "/readyz")
            if connection.getresponse().status == http.HTTPStatus.OK:
                return
        except OSError:
            time.sleep(0.05)
        finally:
            connection.close()
    process.kill()
    raise ReceiverError(f"the receiver did not start: {process.communicate()[1].strip()}")


def _print_answers(answers: Answers) -> None:
    accepted = answers.statuses[http.HTTPStatus.OK]
    refused = answers.statuses[http.HTTPStatus.UNAUTHORIZED]
    print(f"{accepted} deliveries accepted, {refused} refused for a wrong signature")
    if not _is_expected(answers):
        print(f"but of all: {answers.describe()} {answers.first_error}".rstrip())


def _is_expected(answers: Answers) -> bool:
    """Tell whether every delivery was accepted, or refused for its signature."""
    expected = {http.HTTPStatus.OK, http.HTTPStatus.UNAUTHORIZED}
    return not answers.unanswered_count and answers.statuses.keys() <= expected


def _print_load(report: LoadReport) -> None:
    print(
        f"{report.event_count} new events and {report.repeat_count} repeats loaded into "
        f"{DEFAULT_DATABASE} in {report.duration_s:.1f} s\n"
    )
    with duckdb.connect(DEFAULT_DATABASE, read_only=True) as connection:
        rows = connection.execute(
            "SELECT table_name, estimated_size FROM duckdb_tables() "
            "WHERE schema_name = ? AND table_name NOT LIKE '\\_dlt%' ESCAPE '\\' "
            "AND estimated_size > 0 ORDER BY ALL",
            [DEFAULT_DATASET],
        ).fetchall()
    print(format_table(("table", "rows"), rows))


def _print_visitors() -> None:
    print("\nWhich companies visited, how many people, and what did they look at?\n")
    query = files("pipelines.demo").joinpath("visitors.sql").read_text("utf-8")
    with duckdb.connect(DEFAULT_DATABASE, read_only=True) as connection:
        found = connection.execute(query)
        names = [column[0] for column in found.description]
        print(format_table(names, found.fetchall()))
    print(f"\nAsk your own: duckdb {DEFAULT_DATABASE}, then SHOW ALL TABLES")
