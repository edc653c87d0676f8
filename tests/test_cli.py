"""The command: its verbs, its exit codes, its words, and what it must not import."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import duckdb
import pytest
from spooling import fill_spool, sample_event

from pipelines.cli import VERBS, main
from pipelines.errors import VerificationError, WarehouseError, WarehouseHeldError
from pipelines.exit_codes import ExitCode
from pipelines.report import LoadReport, Refusal
from pipelines.verbs import load
from receiver.counts import ProcessCounts
from receiver.errors import BusyError, ConfigurationError, SpoolError
from receiver.segment import Spool, load_lock

README = Path(__file__).parents[1] / "README.md"
HEAVY = ("dlt", "pyarrow", "duckdb", "flask", "granian")


@pytest.fixture(autouse=True)
def _empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _body(**changes: object) -> bytes:
    return json.dumps(sample_event() | changes).encode()


def _run_apart(code: str) -> str:
    """Run in a process of its own, to see what it imports."""
    return subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(README.parent)},
    ).stdout


def test_an_empty_spool_is_nothing_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["load"]) == ExitCode.NOTHING_TO_DO
    assert capsys.readouterr().out == "Nothing to do: no sealed segment waits in the spool.\n"


def test_nothing_to_do_is_found_out_without_dlt() -> None:
    code = (
        "import sys; from pipelines.cli import main; print(main(['load'])); "
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    assert _run_apart(code).splitlines()[1:] == ["3", "[]"]


def test_the_receiver_never_sees_dlt() -> None:
    code = (
        "import sys; import pipelines.verbs.receive, receiver.server; "
        "print([name for name in ('dlt', 'pyarrow', 'duckdb') if name in sys.modules])"
    )
    assert _run_apart(code) == "[]\n"


def test_a_load_says_what_it_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill_spool(tmp_path / "spool", [("evt_1", _body()), ("evt_1", _body())])
    assert main(["load"]) == ExitCode.DONE
    out = capsys.readouterr().out
    assert out.startswith(
        "1 segment, 2 deliveries: 1 new event, 1 repeat, 0 conflicts, 0 set aside ("
    )
    assert "page_events                                                  3" in out
    assert "new tables (20): events, identity_emails, " in out


def test_a_load_as_json_holds_the_whole_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill_spool(tmp_path / "spool", [("evt_1", _body())])
    assert main(["load", "--json"]) == ExitCode.DONE
    report = json.loads(capsys.readouterr().out)
    assert report["event_count"] == 1
    assert report["row_counts"]["skills"] == 5
    assert report["alarms"] == []


def test_a_destination_that_is_set_to_nothing_is_the_default_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DESTINATION__WAREHOUSE__DESTINATION_TYPE", "")
    monkeypatch.setenv("DESTINATION__WAREHOUSE__CREDENTIALS", "")
    fill_spool(tmp_path / "spool", [("evt_1", _body())])
    assert main(["load"]) == ExitCode.DONE
    assert Path("midbound.duckdb").exists()
    assert not Path("warehouse.duckdb").exists()


def test_a_new_column_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill_spool(tmp_path / "spool", [("evt_1", _body())])
    main(["load"])
    fill_spool(tmp_path / "spool", [("evt_2", _body(shoeSize=43))])
    capsys.readouterr()
    assert main(["load"]) == ExitCode.DONE
    assert "new columns (1): events.shoe_size" in capsys.readouterr().out


def test_what_is_set_aside_needs_attention(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill_spool(tmp_path / "spool", [("evt_1", _body()), ("evt_2", b"[1]"), ("evt_3", b"{")])
    segment = Spool(tmp_path / "spool").ready_segments()[0].stem
    assert main(["load"]) == ExitCode.NEEDS_ATTENTION
    assert capsys.readouterr().out.endswith(
        "set aside (2):\n"
        f"  {segment}, line 1 evt_2: not a JSON object but an array\n"
        f"  {segment}, line 2 evt_3: not JSON: Expecting property name enclosed in double quotes "
        "at character 1\n"
    )


def test_of_many_set_aside_the_first_are_shown_and_the_rest_counted() -> None:
    refusals = [Refusal(segment="s", place=f"line {n}", reason="not JSON") for n in range(23)]
    report = LoadReport(segment_count=1, set_aside=refusals, purged_load_ids=["1.5"])
    text = load.describe(report)
    assert "purged after a crash (1): 1.5\n\nset aside (23):\n  s, line 0: not JSON\n" in text
    assert text.endswith("\n  s, line 19: not JSON\n  and 3 more")


def test_a_damage_is_shown_with_its_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill_spool(tmp_path / "spool", [("evt_1", _body())])
    (segment,) = Spool(tmp_path / "spool").ready_segments()
    data = segment.read_bytes()
    segment.write_bytes(data.replace(b"evt_1", b"evt_7", 1))
    size_bytes = data.index(b"\n") + 1
    assert main(["load"]) == ExitCode.NEEDS_ATTENTION
    assert (
        "damaged, kept in quarantine (1):\n"
        f"  {segment.stem}, offset 0, {size_bytes} bytes: the checksum does not fit\n"
    ) in capsys.readouterr().out


def test_a_wrong_secret_needs_attention(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spool = Spool(tmp_path / "spool")
    spool.create()
    counts = ProcessCounts(spool)
    counts.add_refused("wrong_signature")
    counts.close()
    assert main(["load"]) == ExitCode.NEEDS_ATTENTION
    assert capsys.readouterr() == (
        "Nothing to do: no sealed segment waits in the spool.\n",
        "midbound load: every signed delivery is refused since the beginning: the secret is "
        "probably wrong; compare receiver.webhook_secret with the endpoint's secret in the "
        "Midbound console\n",
    )


def test_a_silent_source_needs_attention(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["load", "--max-age", "2h"]) == ExitCode.NEEDS_ATTENTION
    assert capsys.readouterr().err == (
        "midbound load: nothing was accepted since the beginning: check that the receiver runs, "
        "and that Midbound still sends to its address\n"
    )


def test_a_second_load_is_busy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spool = Spool(tmp_path / "spool")
    spool.create()
    with load_lock(spool):
        assert main(["load"]) == ExitCode.BUSY
    assert capsys.readouterr().err == (
        f"midbound load: another load is running (process {os.getpid()} holds "
        "spool/load.lock); wait until it has ended, then load again\n"
    )


def test_a_receiver_without_a_secret_says_where_to_put_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["receive"]) == ExitCode.USAGE
    assert capsys.readouterr().err == (
        "midbound receive: receiver.webhook_secret is not set; put the signing secret of the "
        "endpoint into .dlt/secrets.toml under [receiver] webhook_secret, or into the environment "
        "as RECEIVER__WEBHOOK_SECRET\n"
    )


def test_a_warehouse_that_cannot_be_opened_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fill_spool(tmp_path / "spool", [("evt_1", _body())])
    (tmp_path / "midbound.duckdb").write_bytes(b"this is no database" * 1000)
    assert main(["load"]) == ExitCode.FAILED
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("midbound load: the warehouse failed: IO Error: ")
    assert error.endswith("(nothing is lost: the spool keeps every event)")
    assert len(Spool(tmp_path / "spool").ready_segments()) == 1


def test_the_demo_answers_and_a_second_one_adds_no_doubles(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo"]) == ExitCode.DONE
    first = capsys.readouterr().out
    assert main(["demo"]) == ExitCode.DONE
    second = capsys.readouterr().out
    assert "241 new events" in first
    assert "0 new events" in second
    with duckdb.connect("midbound.duckdb", read_only=True) as connection:
        (counts,) = connection.execute(
            "SELECT count(*), count(DISTINCT event_id) FROM midbound_data.events"
        ).fetchall()
        (question,) = re.findall(r"(?s)```sql\n(.*?)```", README.read_text("utf-8"))
        answer = connection.execute(question).fetchall()
    assert counts == (241, 241)
    assert len(answer) > 5
    assert all(company and person for company, _, person, _ in answer)


def test_the_demo_keeps_out_of_a_configured_receiver(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RECEIVER__WEBHOOK_SECRET", "whsec_" + "C" * 32)
    assert main(["demo"]) == ExitCode.USAGE
    assert capsys.readouterr().err == (
        "midbound demo: a real receiver or warehouse is configured here, and the demo would mix "
        "invented visitors into it; run it in a fresh clone\n"
    )


def test_every_verb_and_exit_code_is_documented(capsys: pytest.CaptureFixture[str]) -> None:
    readme = README.read_text("utf-8")
    for verb in VERBS:
        assert f"midbound {verb.name}" in readme or f"make {verb.name}" in readme
    for code in ExitCode:
        assert f"| {code.value} |" in readme
    with pytest.raises(SystemExit):
        main(["--help"])
    help_text = capsys.readouterr().out
    assert all(verb.summary in help_text for verb in VERBS)


@pytest.mark.parametrize("verb", [verb.name for verb in VERBS])
def test_every_verb_has_help(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([verb, "--help"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: midbound {verb}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "midbound: error: the following arguments are required: VERB"),
        (["fly"], "midbound: error: argument VERB: invalid choice: 'fly' (choose from "),
        (["--", "load"], "midbound: error: "),
        (["explain"], "midbound explain: error: the following arguments are required: EVENT_ID"),
        (
            ["status", "--max-age", "2x"],
            "midbound status: error: argument --max-age: '2x' is not a duration like 90s, 30m, 2h "
            "or 1d",
        ),
    ],
)
def test_wrong_arguments_are_a_usage_error(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == ExitCode.USAGE
    assert capsys.readouterr().err.splitlines()[-1].startswith(message)


def test_the_version_is_that_of_the_distribution(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(metadata, "version", {"midbound-warehouse": "1.2.3"}.__getitem__)
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == "midbound 1.2.3\n"


def test_a_source_tree_that_is_not_installed_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def find_nothing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", find_nothing)
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == "midbound of a source tree that is not installed\n"


def _raise(error: BaseException) -> Callable[..., int]:
    def run(*_: object) -> int:
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ConfigurationError("set a secret"), 2, "set a secret"),
        (BusyError("another load is running"), 4, "another load is running"),
        (WarehouseHeldError("duckdb holds it"), 4, "duckdb holds it"),
        (WarehouseError("it is away"), 1, "it is away"),
        (VerificationError("3 of 4"), 1, "3 of 4"),
        (SpoolError("not a directory"), 1, "not a directory"),
        (PermissionError(13, "Permission denied", "spool"), 1, "spool: Permission denied"),
        (OSError("the disk is gone"), 1, "the disk is gone"),
        (KeyboardInterrupt(), 130, "interrupted; nothing is lost"),
        (
            ModuleNotFoundError("No module named 'dlt'", name="dlt"),
            2,
            "dlt is not installed; run in the project's checkout: .venv/bin/pip install "
            "--editable '.[load]'",
        ),
    ],
)
def test_every_error_is_one_line_and_an_exit_code(
    error: BaseException,
    code: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(load, "run", _raise(error))
    assert main(["load"]) == code
    assert capsys.readouterr().err == f"midbound load: {message}\n"


def test_a_bug_of_ours_is_not_called_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    error = ModuleNotFoundError("No module named 'pipelines.x'", name="pipelines.x")
    monkeypatch.setattr(load, "run", _raise(error))
    with pytest.raises(ModuleNotFoundError):
        main(["load"])


def test_a_reader_that_goes_away_is_no_traceback(tmp_path: Path) -> None:
    command = f"'{sys.executable}' -c 'import sys, pipelines.cli as cli; sys.exit(cli.main())'"
    ended = subprocess.run(
        # The reader is gone for sure before the first byte is written.
        ["bash", "-c", f"(sleep 0.2; {command} load --json) | true; echo ${{PIPESTATUS[0]}}"],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(README.parent)},
    )
    assert (ended.stdout, ended.stderr) == ("1\n", "")


def test_a_secret_that_a_driver_quotes_is_hidden(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DESTINATION__WAREHOUSE__DESTINATION_TYPE", "postgres")
    monkeypatch.setenv("DESTINATION__WAREHOUSE__CREDENTIALS", "loader:hunter2@@")
    assert main(["status"]) == ExitCode.FAILED
    assert capsys.readouterr().err == (
        "midbound status: the warehouse failed: Could not parse SQLAlchemy URL "
        "from string '***'; mend that, then try again (nothing is lost: the spool keeps every "
        "event)\n"
    )
