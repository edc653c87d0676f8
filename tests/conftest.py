"""What holds for all tests: no telemetry, no settings from outside, and no silent skips."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

_OUTSIDE = ("SPOOL__", "RECEIVER__", "DESTINATION__", "PIPELINES__")


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the settings of whoever runs the tests."""
    for name in [name for name in os.environ if name.startswith(_OUTSIDE)]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("RUNTIME__DLTHUB_TELEMETRY", "false")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Iterator[None]:
    """Tell of a test that was skipped."""
    return _fail_if_skipped((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Iterator[None]:
    """Tell of a module that was skipped while it was collected."""
    return _fail_if_skipped((yield))


def _fail_if_skipped(report):
    """Where everything has to be there (`.ci/run`), what is skipped has failed."""
    if os.environ.get("MIDBOUND_TEST_NO_SKIPS") and report.skipped:
        report.outcome = "failed"
    return report
