"""The demo where it cannot start: one line that says why, and nothing sent.

What it does when all is well is held by the tests of the command.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest

from pipelines.cli import main
from pipelines.demo.send import Answers, Delivery, Sender
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


def test_the_demo_keeps_out_of_a_dataset_of_ones_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PIPELINES__MIDBOUND__DATASET_NAME", "analytics")
    assert main(["demo"]) == ExitCode.USAGE
    assert "a real receiver or warehouse is configured here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        (Answers(statuses=Counter({200: 3, 503: 1})), "but of all: 3 answered 200, 1 answered 503"),
        (
            Answers(statuses=Counter({200: 3}), unanswered_count=1, first_error="refused"),
            "but of all: 3 answered 200, 1 without an answer refused",
        ),
    ],
)
def test_a_delivery_that_is_not_answered_as_it_should_be_fails_the_demo(
    answers: Answers,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    post_all = Sender.post_all

    def post_and_forget(self: Sender, deliveries: Iterable[Delivery]) -> Answers:
        post_all(self, deliveries)
        return answers

    monkeypatch.setattr(Sender, "post_all", post_and_forget)
    assert main(["demo"]) == ExitCode.FAILED
    assert told in capsys.readouterr().out
