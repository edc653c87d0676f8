"""No message shows a secret, wherever it is configured; what is none stays readable."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.redact import hide_secrets


@pytest.mark.parametrize(
    ("environ", "text", "shown"),
    [
        ({"RECEIVER__WEBHOOK_SECRET": "whsec_abc,whsec_def"}, "bad whsec_def", "bad ***"),
        (
            {"RECEIVER__WEBHOOK_SECRET": '["whsec_abc", "whsec_def"]'},
            "bad whsec_def and whsec_abc",
            "bad *** and ***",
        ),
        (
            {"DESTINATION__WAREHOUSE__CREDENTIALS": "u:hunter2@@"},
            "from 'u:hunter2@@'",
            "from '***'",
        ),
        (
            {"DESTINATION__WAREHOUSE__CREDENTIALS": "postgresql://u:hunter2@db/x"},
            "u may not log in with hunter2",
            "u may not log in with ***",
        ),
        ({"DESTINATION__WAREHOUSE__CREDENTIALS__PASSWORD": "hunter2"}, "hunter2!", "***!"),
        # Neither of these is secret, and a message without them would help nobody.
        ({"DESTINATION__WAREHOUSE__CREDENTIALS": "x.duckdb"}, "x.duckdb is held", None),
        ({"DESTINATION__WAREHOUSE__CREDENTIALS__HOST": "db.example"}, "db.example is away", None),
        ({"PASSWORD": "is"}, "it is away", None),
        ({}, "it is away", None),
    ],
)
def test_what_the_environment_keeps_secret_is_hidden(
    environ: dict[str, str], text: str, shown: str | None, tmp_path: Path
) -> None:
    assert hide_secrets(text, tmp_path, environ) == (shown or text)


def test_what_the_file_of_secrets_holds_is_hidden(tmp_path: Path) -> None:
    (tmp_path / ".dlt").mkdir()
    (tmp_path / ".dlt" / "secrets.toml").write_text(
        '[receiver]\nwebhook_secret = ["whsec_abc", "whsec_def"]\n'
        '[destination.warehouse.credentials]\nhost = "db.example"\npassword = "hunter2"\n'
    )
    text = "whsec_abc, whsec_def and hunter2 at db.example"
    assert hide_secrets(text, tmp_path, {}) == "***, *** and *** at db.example"


def test_a_longer_secret_is_hidden_before_a_part_of_it(tmp_path: Path) -> None:
    environ = {"A_SECRET": "abcd", "B_SECRET": "abcdefgh"}
    assert hide_secrets("abcdefgh abcd", tmp_path, environ) == "*** ***"


def test_a_broken_file_of_secrets_hides_no_message(tmp_path: Path) -> None:
    (tmp_path / ".dlt").mkdir()
    (tmp_path / ".dlt" / "secrets.toml").write_bytes(b"\xff = [")
    assert hide_secrets("cannot read secrets.toml", tmp_path, {}) == "cannot read secrets.toml"
