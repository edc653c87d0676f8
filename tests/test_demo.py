"""The demo where it cannot start: one line that says why, and nothing sent.

What it does when all is well is held by the tests of the command.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.cli import main
from pipelines.exit_codes import ExitCode


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_receiver_that_does_not_start_is_an_error_of_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "spool").mkdir()
    (tmp_path / "spool").chmod(0o777)
    assert main(["demo"]) == ExitCode.FAILED
    assert capsys.readouterr().err == (
        "midbound demo: the receiver did not start: midbound receive: other users can write to "
        "spool (mode 0777); run: chmod 700 spool\n"
    )


def test_the_demo_keeps_out_of_a_receiver_with_a_certificate(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("TLS_CERTIFICATE", "TLS_KEY"):
        monkeypatch.setenv(f"RECEIVER__{name}", "file.pem")
    assert main(["demo"]) == ExitCode.USAGE
    assert "a real receiver or warehouse is configured here" in capsys.readouterr().err
