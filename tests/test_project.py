"""What holds for the repository itself: its layout, its pins, and what it documents."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest

from pipelines.destination import DEFAULT_DATASET
from receiver.config import ReceiverSettings, SpoolSettings

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
CONSTRAINTS = (ROOT / "deploy/constraints/all.txt").read_text("utf-8")
WORKFLOW = (ROOT / ".github/workflows/load.yml").read_text("utf-8")
TOP_LEVEL = {
    ".ci", ".dlt", ".github", ".gitignore", "CHANGELOG.md", "LICENSE", "Makefile", "README.md",
    "SECURITY.md", "deploy", "notebooks", "pipelines", "pyproject.toml", "receiver", "tests",
}  # fmt: skip
SETTINGS = [f"spool.{key.name}" for key in fields(SpoolSettings)] + [
    f"receiver.{key.name}" for key in fields(ReceiverSettings)
]


def _tracked() -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    return listed.stdout.splitlines()


def test_the_top_level_holds_what_it_should_and_nothing_else() -> None:
    assert {path.split("/")[0] for path in _tracked()} == TOP_LEVEL


def test_no_data_and_no_secret_is_tracked() -> None:
    forbidden = re.compile(r"\.duckdb|(^|/)spool/|secrets\.toml$|\.ipynb$")
    found = [path for path in _tracked() if forbidden.search(path)]
    assert found == [".dlt/example.secrets.toml"]


def test_every_constraint_is_pinned_and_hashed_and_names_no_host() -> None:
    assert not re.search(r"://|--index|--find-links|--extra", CONSTRAINTS)
    pins = re.findall(r"(?m)^[a-z0-9][^\n]*(?:\n    --hash[^\n]*)*", CONSTRAINTS)
    assert len(pins) > 50
    for pin in pins:
        assert re.match(r"[a-z0-9._-]+==\S+", pin), pin
        assert "--hash=sha256:" in pin, pin


@pytest.mark.parametrize("name", ["dlt", "duckdb", "flask", "granian", "pyarrow", "sqlglot"])
def test_what_decides_things_is_pinned(name: str) -> None:
    assert re.search(rf"(?m)^{name}==", CONSTRAINTS)


@pytest.mark.parametrize("setting", SETTINGS)
def test_every_setting_is_documented(setting: str) -> None:
    assert f"`{setting}`" in README
    section, key = setting.split(".")
    example = "example.secrets.toml" if key == "webhook_secret" else "config.toml"
    text = (ROOT / ".dlt" / example).read_text("utf-8")
    assert f"[{section}]" in text
    assert re.search(rf"(?m)^#? ?{key} = ", text)


def test_the_defaults_in_the_configuration_are_those_of_the_code() -> None:
    text = (ROOT / ".dlt/config.toml").read_text("utf-8")
    written = tomllib.loads(re.sub(r"(?m)^# (?=[a-z_]+ = )", "", text))
    for section, defaults in (("spool", SpoolSettings()), ("receiver", ReceiverSettings())):
        for key, value in written[section].items():
            default = getattr(defaults, key)
            if default is not None:  # else an example of what is off unless it is set
                assert str(default) == str(value) or default == value
    assert written["pipelines"]["midbound"]["dataset_name"] == DEFAULT_DATASET


def test_every_make_target_is_explained() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    (targets,) = re.findall(r"(?m)^\.PHONY: (.*)$", makefile)
    for target in set(targets.split()) - {"help"}:
        assert re.search(rf"(?m)^#   make {target} ", makefile)


def test_the_readme_is_short_enough_to_be_read() -> None:
    assert len(README.splitlines()) <= 180


def test_the_secret_is_written_as_the_readme_says_for_its_owner_only(tmp_path: Path) -> None:
    (command,) = re.findall(r"(?ms)^\(umask .*?\)(?=  )", README)
    secrets = tmp_path / ".dlt/secrets.toml"
    secrets.parent.mkdir()
    for before in ("", "[destination]\n"):
        secrets.unlink(missing_ok=True)
        if before:
            secrets.write_text(before)
            secrets.chmod(0o600)
        subprocess.run(["/bin/sh", "-c", f"umask 022; {command}"], cwd=tmp_path, check=True)
        assert secrets.read_text() == f'{before}[receiver]\nwebhook_secret = "whsec_…"\n'
        assert secrets.stat().st_mode & 0o777 == 0o600


def test_nobody_is_told_to_install_what_no_index_has() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    for name in ("README.md", ".dlt/example.secrets.toml", "pipelines/cli.py"):
        text = (ROOT / name).read_text("utf-8")
        assert "install 'midbound-warehouse" not in text
        told = re.findall(r"\.venv/bin/pip install --editable '\.\[(\w+)\]'", text)
        assert told
        assert set(told) <= set(extras)


@pytest.mark.parametrize("package", ["receiver", "pipelines"])
def test_both_packages_say_that_they_are_typed(package: str) -> None:
    assert (ROOT / package / "py.typed").is_file()


def test_the_scheduled_load_checks_nothing_out() -> None:
    # A checkout cleans the directory, and what git ignores is spool and warehouse.
    steps = re.sub(r"(?m)#.*$", "", WORKFLOW)
    assert "checkout" not in steps
    assert "cancel-in-progress: false" in steps


@pytest.mark.parametrize(("code", "expected"), [(0, 0), (3, 0), (4, 0), (5, 5), (1, 1), (2, 2)])
def test_the_scheduled_load_fails_where_somebody_has_to_look(
    code: int, expected: int, tmp_path: Path
) -> None:
    assert _run_workflow(tmp_path, code, {}).returncode == expected


def test_the_scheduled_load_sets_nothing_that_is_not_set_in_github(tmp_path: Path) -> None:
    set_there = {"SPOOL__PATH": "/srv/spool", "DESTINATION__WAREHOUSE__DESTINATION_TYPE": ""}
    printed = _run_workflow(tmp_path, 0, set_there).stdout.splitlines()
    assert [line for line in printed if re.match("SPOOL__|DESTINATION__", line)] == [
        "SPOOL__PATH=/srv/spool"
    ]


def _run_workflow(
    directory: Path, code: int, set_there: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run the workflow's script, with a `midbound` that prints its environment."""
    (script,) = re.findall(r"(?ms)^        run: \|\n(.*)\Z", WORKFLOW)
    command = directory / ".venv/bin/midbound"
    command.parent.mkdir(parents=True)
    command.write_text(f"#!/bin/sh\nenv\nexit {code}\n")
    command.chmod(0o700)
    return subprocess.run(
        ["bash", "-e", "-c", textwrap.dedent(script)],  # as GitHub starts it
        cwd=directory,
        env={"PATH": os.environ["PATH"]} | set_there,
        check=False,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("has_to_run", [True, False])
def test_a_skip_is_a_failure_where_everything_has_to_run(has_to_run: bool) -> None:
    """Skipped for want of strace, with nothing in the search path."""
    environ = {"PATH": "/nonexistent"} | ({"MIDBOUND_TEST_NO_SKIPS": "1"} if has_to_run else {})
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider",
         "tests/faults/test_system_calls.py", "-k", "recovery and EINTR"],
        cwd=ROOT, env=environ, check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert "the command strace is missing" in done.stdout
    assert (done.returncode == 0) is not has_to_run


@pytest.mark.parametrize("has_to_run", [True, False])
def test_a_module_that_is_skipped_is_a_failure_too(tmp_path: Path, has_to_run: bool) -> None:
    """Skipped while it is collected, as by `importorskip`."""
    (tmp_path / "test_it.py").write_text("import pytest\npytest.importorskip('missing_module')\n")
    environ = {"PYTHONPATH": str(ROOT / "tests")}
    environ |= {"MIDBOUND_TEST_NO_SKIPS": "1"} if has_to_run else {}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "conftest", "test_it.py"],
        cwd=tmp_path, env=environ, check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert "missing_module" in done.stdout if has_to_run else "1 skipped" in done.stdout
    assert ("error" in done.stdout) is has_to_run
