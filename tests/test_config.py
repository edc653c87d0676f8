"""Settings come from two files and the environment, and every mistake is named with its cure."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from receiver.config import ReceiverSettings, Settings, SpoolSettings, read_settings
from receiver.errors import ConfigurationError

SECRET = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYX"


def write(root: Path, name: str, text: str) -> None:
    (root / ".dlt").mkdir(exist_ok=True)
    (root / ".dlt" / name).write_text(text, encoding="utf-8")


def message(root: Path, environ: dict[str, str]) -> str:
    with pytest.raises(ConfigurationError) as refused:
        read_settings(root, environ)
    return str(refused.value)


def test_without_files_everything_has_its_default(tmp_path: Path) -> None:
    assert read_settings(tmp_path, {}) == Settings(
        root=tmp_path,
        spool=SpoolSettings(
            path=tmp_path / "spool",
            segment_max_bytes=16_777_216,
            segment_max_age_s=10.0,
            min_free_bytes=67_108_864,
        ),
        receiver=ReceiverSettings(
            webhook_secret=(),
            key_derivation="both",
            host="127.0.0.1",
            port=8080,
            workers=2,
            max_body_bytes=1_048_576,
            tolerance_s=300,
            body_timeout_s=10.0,
            tls_certificate=None,
            tls_key=None,
        ),
    )


def test_secrets_win_over_config_and_the_environment_wins_over_both(tmp_path: Path) -> None:
    write(tmp_path, "config.toml", '[receiver]\nport = 1\nhost = "::"\nworkers = 3\n')
    write(tmp_path, "secrets.toml", "[receiver]\nport = 2\nworkers = 4\n")
    receiver = read_settings(tmp_path, {"RECEIVER__PORT": "3"}).receiver
    assert (receiver.host, receiver.workers, receiver.port) == ("::", 4, 3)


def test_every_key_can_be_set_in_the_environment(tmp_path: Path) -> None:
    environ = {
        "SPOOL__PATH": "/var/spool/midbound",
        "SPOOL__SEGMENT_MAX_BYTES": "1000",
        "SPOOL__SEGMENT_MAX_AGE_S": "2.5",
        "SPOOL__MIN_FREE_BYTES": "0",
        "RECEIVER__WEBHOOK_SECRET": SECRET,
        "RECEIVER__KEY_DERIVATION": "text",
        "RECEIVER__HOST": "192.0.2.1",
        "RECEIVER__PORT": "80",
        "RECEIVER__WORKERS": "1",
        "RECEIVER__MAX_BODY_BYTES": "2000",
        "RECEIVER__TOLERANCE_S": "60",
        "RECEIVER__BODY_TIMEOUT_S": "3",
        "RECEIVER__TLS_CERTIFICATE": "cert.pem",
        "RECEIVER__TLS_KEY": "/etc/key.pem",
        "RECEIVER__METRICS_HOST": "192.0.2.2",
        "RECEIVER__METRICS_PORT": "9100",
    }
    sections = {"SPOOL": SpoolSettings, "RECEIVER": ReceiverSettings}
    assert set(environ) == {
        f"{section}__{key.name.upper()}"
        for section, kind in sections.items()
        for key in fields(kind)
    }
    assert read_settings(tmp_path, environ) == Settings(
        root=tmp_path,
        spool=SpoolSettings(
            path=Path("/var/spool/midbound"),
            segment_max_bytes=1000,
            segment_max_age_s=2.5,
            min_free_bytes=0,
        ),
        receiver=ReceiverSettings(
            webhook_secret=(SECRET,),
            key_derivation="text",
            host="192.0.2.1",
            port=80,
            workers=1,
            max_body_bytes=2000,
            tolerance_s=60,
            body_timeout_s=3.0,
            tls_certificate=tmp_path / "cert.pem",
            tls_key=Path("/etc/key.pem"),
            metrics_host="192.0.2.2",
            metrics_port=9100,
        ),
    )


@pytest.mark.parametrize("separator", [" ", "\n", ",", ", ", " , \n"])
def test_the_environment_may_hold_several_secrets(tmp_path: Path, separator: str) -> None:
    environ = {"RECEIVER__WEBHOOK_SECRET": f"{SECRET}{separator}{SECRET}2{separator}"}
    assert read_settings(tmp_path, environ).receiver.webhook_secret == (SECRET, f"{SECRET}2")


@pytest.mark.parametrize("text", [f'["{SECRET}","{SECRET}2"]', f" ['{SECRET}',\n '{SECRET}2 ']\n"])
def test_the_environment_may_hold_a_list_as_dlt_reads_one(tmp_path: Path, text: str) -> None:
    environ = {"RECEIVER__WEBHOOK_SECRET": text}
    assert read_settings(tmp_path, environ).receiver.webhook_secret == (SECRET, f"{SECRET}2")


@pytest.mark.parametrize(
    ("text", "secrets"),
    [
        (f'webhook_secret = "{SECRET}"', (SECRET,)),
        (f'webhook_secret = ["{SECRET}", " {SECRET}2\\n"]', (SECRET, f"{SECRET}2")),
        ('webhook_secret = ""', ()),
    ],
)
def test_a_file_may_hold_one_secret_or_a_list(
    tmp_path: Path, text: str, secrets: tuple[str, ...]
) -> None:
    write(tmp_path, "secrets.toml", f"[receiver]\n{text}\n")
    assert read_settings(tmp_path, {}).receiver.webhook_secret == secrets


def test_localhost_is_an_address_too(tmp_path: Path) -> None:
    assert read_settings(tmp_path, {"RECEIVER__HOST": "localhost"}).receiver.host == "127.0.0.1"


def test_sections_of_others_are_left_alone(tmp_path: Path) -> None:
    write(tmp_path, "config.toml", '[destination.warehouse]\ndestination_type = "duckdb"\n')
    assert read_settings(tmp_path, {"DESTINATION__X": "1", "PATH": "/bin"}).receiver.port == 8080


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("SPOOL__PATH", "", "the path of a directory"),
        ("SPOOL__SEGMENT_MAX_BYTES", "16 MiB", "a whole number from 1 to 1073741824"),
        ("SPOOL__SEGMENT_MAX_AGE_S", "nan", "a number of seconds from 0.1 to 86400"),
        ("SPOOL__MIN_FREE_BYTES", "-1", "a whole number from 0 to 1152921504606846976"),
        ("RECEIVER__KEY_DERIVATION", "hex", "one of both, base64, text"),
        ("RECEIVER__HOST", "", "an IP address, such as 127.0.0.1 or 0.0.0.0"),
        ("RECEIVER__HOST", "example.com", "an IP address, such as 127.0.0.1 or 0.0.0.0"),
        ("RECEIVER__HOST", "127.0.0.1:80", "an IP address, such as 127.0.0.1 or 0.0.0.0"),
        ("RECEIVER__METRICS_HOST", "", "an address"),
        ("RECEIVER__PORT", "70000", "a whole number from 1 to 65535"),
        ("RECEIVER__WORKERS", "0", "a whole number from 1 to 256"),
        ("RECEIVER__MAX_BODY_BYTES", "1.5", "a whole number from 1 to 1073741824"),
        ("RECEIVER__TOLERANCE_S", "soon", "a whole number from 1 to 86400"),
        ("RECEIVER__BODY_TIMEOUT_S", "0", "a number of seconds from 0.1 to 600"),
        ("RECEIVER__TLS_CERTIFICATE", "", "the path of a file"),
        ("RECEIVER__TLS_KEY", "", "the path of a file"),
    ],
)
def test_a_value_that_does_not_fit_is_named_with_what_is_wanted(
    tmp_path: Path, name: str, value: str, wanted: str
) -> None:
    section, key = name.lower().split("__")
    assert message(tmp_path, {name: value}) == (
        f"{section}.{key} is {value!r}, which is not {wanted}; "
        f"set it in .dlt/config.toml under [{section}], or in the environment as {name}"
    )


@pytest.mark.parametrize("value", ["true", "[1]", "1.5", '"x"', "2020-01-01"])
def test_a_value_of_another_type_in_a_file_is_refused(tmp_path: Path, value: str) -> None:
    write(tmp_path, "config.toml", f"[receiver]\nport = {value}\n")
    assert message(tmp_path, {}).endswith(
        "which is not a whole number from 1 to 65535; set it in .dlt/config.toml under "
        "[receiver], or in the environment as RECEIVER__PORT"
    )


def test_a_secret_that_does_not_fit_is_not_shown(tmp_path: Path) -> None:
    write(tmp_path, "secrets.toml", "[receiver]\nwebhook_secret = [1234567890]\n")
    assert message(tmp_path, {}) == (
        "receiver.webhook_secret is set to something, which is not a secret or a list of secrets, "
        "without quotes, brackets or white space inside; set it in .dlt/secrets.toml under "
        "[receiver], or in the environment as RECEIVER__WEBHOOK_SECRET"
    )


@pytest.mark.parametrize(
    "text",
    [
        f'"{SECRET}"',
        f"'{SECRET}'",
        f'["{SECRET}"',
        f'{SECRET}, "{SECRET}"',
        f"{{{SECRET}}}",
        f"<{SECRET}>",
        f'["{SECRET} {SECRET}"]',
        f"[{SECRET}]",
        f'[["{SECRET}"]]',
        "[1]",
    ],
)
def test_a_secret_in_quotes_or_brackets_is_refused_and_not_shown(tmp_path: Path, text: str) -> None:
    assert message(tmp_path, {"RECEIVER__WEBHOOK_SECRET": text}) == (
        "receiver.webhook_secret is set to something, which is not a secret or a list of secrets, "
        "without quotes, brackets or white space inside; set it in .dlt/secrets.toml under "
        "[receiver], or in the environment as RECEIVER__WEBHOOK_SECRET"
    )


def test_a_misspelt_key_is_refused_with_the_list_of_keys(tmp_path: Path) -> None:
    assert message(tmp_path, {"SPOOL__PAHT": "x"}) == (
        "spool.paht is not a setting; the settings of [spool] are "
        "path, segment_max_bytes, segment_max_age_s, min_free_bytes"
    )


def test_a_section_that_is_no_table_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "config.toml", "spool = 1\n")
    assert message(tmp_path, {}) == ("spool is not a table; write [spool] on a line of its own")


def test_a_file_that_is_not_toml_is_named_without_its_content(tmp_path: Path) -> None:
    write(tmp_path, "secrets.toml", f"[receiver]\nwebhook_secret = {SECRET}\n")
    assert message(tmp_path, {}) == (
        f"cannot read {tmp_path}/.dlt/secrets.toml: Invalid value (at line 2, column 18); "
        "mend the file"
    )


def test_half_of_a_certificate_is_refused(tmp_path: Path) -> None:
    assert message(tmp_path, {"RECEIVER__TLS_KEY": "key.pem"}) == (
        "receiver.tls_certificate and receiver.tls_key belong together; set both, or neither"
    )


def test_settings_without_a_secret_can_be_read_but_give_no_keys(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as refused:
        read_settings(tmp_path, {}).keys()
    assert str(refused.value) == (
        "receiver.webhook_secret is not set; put the signing secret of the endpoint into "
        ".dlt/secrets.toml under [receiver] webhook_secret, or into the environment as "
        "RECEIVER__WEBHOOK_SECRET"
    )


def test_settings_do_not_show_the_secret(tmp_path: Path) -> None:
    settings = read_settings(tmp_path, {"RECEIVER__WEBHOOK_SECRET": SECRET})
    assert SECRET.removeprefix("whsec_") not in f"{settings!r} {settings.keys()!r}"
