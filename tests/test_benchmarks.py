"""The benchmarks run, at sizes that measure nothing: `make bench` must not rot."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


def run_benchmark(name: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(TESTS / "benchmarks" / f"{name}.py"), *arguments],
        env=os.environ | {"PYTHONPATH": f"{TESTS}:{TESTS.parent}"},
        check=False,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_loading_is_compared_with_every_peer() -> None:
    printed = run_benchmark("bench_load", "--events", "20", "--rounds", "1")
    assert "Loading 20 finalized events" in printed
    ways = (
        "ours",
        "dlt out of the box",
        "dlt at its best",
        "DuckDB alone",
        "floor",
        "ours, one event",
        "DuckDB, storing",
    )
    assert all(f"\n{way} " in printed for way in ways), printed


def test_odd_events_are_compared() -> None:
    printed = run_benchmark("bench_odd", "--events", "100", "--odd-events", "10", "--rounds", "1")
    assert "\nLoading 100 events\n" in printed
    assert "\nLoading 10 odd events\n" in printed


def test_growth_and_small_runs_are_compared() -> None:
    sizes = ("--events", "5", "--held", "20", "--new", "10", "--rounds", "1")
    printed = run_benchmark("bench_growth", *sizes)
    for title in (
        "Ten times the events",
        "Their peak of memory",
        "Loading 10 events into a warehouse",
        "Small runs",
    ):
        assert f"\n{title}\n" in printed
    assert "\nEvery 16th load joins row groups: " in printed


def test_start_and_recovery_are_compared() -> None:
    printed = run_benchmark("bench_start", "--recover-mb", "2", "--rounds", "1")
    assert "first answer after" in printed
    assert "\nrecovery " in printed


@pytest.mark.skipif(shutil.which("wrk") is None, reason="needs the program wrk")
def test_acknowledging_is_compared() -> None:
    ways = ["ours", "Flask, gunicorn sync", "an empty route"]
    printed = run_benchmark("bench_receive", "--rounds", "1", "--seconds", "1", "--ways", *ways)
    assert all(f"\n{way} " in printed for way in ways), printed
    assert "\nGroup commit\n" in printed


def test_the_steps_of_a_delivery_are_measured() -> None:
    printed = run_benchmark("bench_delivery", "--times", "1", "--rounds", "1")
    assert "\nOne delivery of 9 kB, step by step\n" in printed
    assert "\nverify the signature" in printed
