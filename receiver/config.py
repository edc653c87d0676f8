"""The settings of receiver and spool: two TOML files and the environment, which wins.

The classes below are the list of all keys: section `spool` and section `receiver`, a field each.
`.dlt/config.toml` and `.dlt/secrets.toml` are looked for below a root directory (the working
directory, as dlt does); a key can be set from the environment as `SECTION__KEY`. Only the standard
library is used: a receiver host need not have dlt.
"""

from __future__ import annotations

import ipaddress
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from receiver.errors import ConfigurationError
from receiver.signature import AllowedDerivations, Key, derive_keys

MIB = 1024 * 1024
# What is left when a list or a quoted text was not understood as one.
_NOT_IN_A_SECRET = re.compile(r"""[\s"'`\[\](){}<>]""")

_Section = TypeVar("_Section", "SpoolSettings", "ReceiverSettings")


@dataclass(frozen=True, kw_only=True)
class SpoolSettings:
    """Section `spool`: where events are kept, and when a segment is sealed."""

    path: Path = Path("spool")
    segment_max_bytes: int = 16 * MIB
    segment_max_age_s: float = 10.0
    min_free_bytes: int = 64 * MIB


@dataclass(frozen=True, kw_only=True)
class ReceiverSettings:
    """Section `receiver`: where to listen, whom to believe, how much to take."""

    webhook_secret: tuple[str, ...] = field(default=(), repr=False)
    key_derivation: AllowedDerivations = "both"
    host: str = "127.0.0.1"
    port: int = 8080
    workers: int = 2
    max_body_bytes: int = MIB
    tolerance_s: int = 300
    body_timeout_s: float = 10.0
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    metrics_host: str = "127.0.0.1"
    metrics_port: int | None = None


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings; `root` is the directory from which relative paths count."""

    root: Path = Path()
    spool: SpoolSettings = SpoolSettings()
    receiver: ReceiverSettings = ReceiverSettings()

    def keys(self) -> tuple[Key, ...]:
        """Give every key that a delivery may be signed with. Raises ConfigurationError."""
        if not self.receiver.webhook_secret:
            raise ConfigurationError(
                "receiver.webhook_secret is not set; put the signing secret of the endpoint into "
                ".dlt/secrets.toml under [receiver] webhook_secret, or into the environment as "
                "RECEIVER__WEBHOOK_SECRET"
            )
        return derive_keys(self.receiver.webhook_secret, self.receiver.key_derivation)


def read_settings(root: Path = Path(), environ: Mapping[str, str] = os.environ) -> Settings:
    """Read the settings below `root` and from the environment. Raises ConfigurationError.

    Relative paths count from `root`. A missing file is an empty one. A missing secret is no error
    here: only `Settings.keys` needs it.
    """
    tables = [_read_file(root / ".dlt" / name) for name in ("config.toml", "secrets.toml")]
    spool = _read_section("spool", SpoolSettings, tables, environ)
    receiver = _read_section("receiver", ReceiverSettings, tables, environ)
    settings = Settings(
        root=root,
        spool=replace(spool, path=root / spool.path),
        receiver=replace(
            receiver,
            tls_certificate=_below(root, receiver.tls_certificate),
            tls_key=_below(root, receiver.tls_key),
        ),
    )
    if (receiver.tls_certificate is None) != (receiver.tls_key is None):
        raise ConfigurationError(
            "receiver.tls_certificate and receiver.tls_key belong together; set both, or neither"
        )
    return settings


def _read_file(path: Path) -> dict[str, object]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        # The error names a place, and never shows the line, which may hold a secret.
        raise ConfigurationError(f"cannot read {path}: {error}; mend the file") from None


def _read_section(
    section: str,
    settings_class: type[_Section],
    tables: list[dict[str, object]],
    environ: Mapping[str, str],
) -> _Section:
    values = _raw_values(section, tables, environ)
    known = [key.name for key in fields(settings_class)]
    for key in values:
        if key not in known:
            raise ConfigurationError(
                f"{section}.{key} is not a setting; the settings of [{section}] are "
                f"{', '.join(known)}"
            )
    # Any: each rule gives the type of its own field, which no checker can see.
    converted: dict[str, Any] = {key: _convert(section, key, raw) for key, raw in values.items()}
    return settings_class(**converted)


def _raw_values(
    section: str, tables: list[dict[str, object]], environ: Mapping[str, str]
) -> dict[str, object]:
    """Give what is set in a section, later files over earlier ones, the environment over all."""
    values: dict[str, object] = {}
    for table in tables:
        part = table.get(section, {})
        if not isinstance(part, dict):
            raise ConfigurationError(
                f"{section} is not a table; write [{section}] on a line of its own"
            )
        values.update(part)
    prefix = f"{section.upper()}__"
    values.update(
        {
            name.removeprefix(prefix).lower(): text
            for name, text in environ.items()
            if name.startswith(prefix)
        }
    )
    return values


def _convert(section: str, key: str, raw: object) -> object:
    rule = _RULES[section, key]
    try:
        return rule.read(raw)
    except (ValueError, TypeError, AttributeError):
        # A secret must not show up in an error.
        is_secret = key == "webhook_secret"
        shown, file = ("set to something", "secrets") if is_secret else (repr(raw), "config")
        raise ConfigurationError(
            f"{section}.{key} is {shown}, which is not {rule.wanted}; set it in .dlt/{file}.toml "
            f"under [{section}], or in the environment as {section.upper()}__{key.upper()}"
        ) from None


def _below(root: Path, path: Path | None) -> Path | None:
    return None if path is None else root / path


def _path(raw: object) -> Path:
    if not isinstance(raw, str) or not raw:
        raise ValueError
    return Path(raw)


def _text(raw: object) -> str:
    if not isinstance(raw, str) or not raw:
        raise ValueError
    return raw


def _ip_address(raw: object) -> str:
    """Read an address; a name could mean several, and Granian takes none."""
    if raw == "localhost":
        return "127.0.0.1"
    if not isinstance(raw, str):
        raise TypeError
    return str(ipaddress.ip_address(raw))


def _secrets(raw: object) -> tuple[str, ...]:
    """Read one secret or several.

    The environment separates them by white space or commas, or holds a list as dlt reads one.
    """
    if isinstance(raw, str):
        raw = _split(raw.strip(" \t\r\n,"))
    if not isinstance(raw, list):
        raise TypeError
    secrets = tuple(secret.strip() for secret in raw)
    if any(_NOT_IN_A_SECRET.search(secret) for secret in secrets):
        raise ValueError
    return secrets


def _split(text: str) -> object:
    if text.startswith("["):
        return tomllib.loads(f"secrets = {text}")["secrets"]
    return re.split(r"[\s,]+", text) if text else []


def _derivation(raw: object) -> str:
    if raw not in ("both", "base64", "text"):
        raise ValueError
    return str(raw)


def _whole(least: int, most: int) -> _Rule:
    def read(raw: object) -> int:
        if isinstance(raw, bool) or not isinstance(raw, (int, str)):
            raise TypeError
        if not least <= int(raw) <= most:
            raise ValueError
        return int(raw)

    return _Rule(f"a whole number from {least} to {most}", read)


def _seconds(least: float, most: float) -> _Rule:
    def read(raw: object) -> float:
        if isinstance(raw, bool) or not isinstance(raw, (int, float, str)):
            raise TypeError
        if not least <= float(raw) <= most:  # also refuses nan
            raise ValueError
        return float(raw)

    return _Rule(f"a number of seconds from {least:g} to {most:g}", read)


class _Rule(NamedTuple):
    """What a value has to be, in words and in code (which raises ValueError)."""

    wanted: str
    read: Callable[[object], object]


_RULES = {
    ("spool", "path"): _Rule("the path of a directory", _path),
    ("spool", "segment_max_bytes"): _whole(1, 1024 * MIB),
    ("spool", "segment_max_age_s"): _seconds(0.1, 86_400),
    ("spool", "min_free_bytes"): _whole(0, 2**60),
    ("receiver", "webhook_secret"): _Rule(
        "a secret or a list of secrets, without quotes, brackets or white space inside", _secrets
    ),
    ("receiver", "key_derivation"): _Rule("one of both, base64, text", _derivation),
    ("receiver", "host"): _Rule("an IP address, such as 127.0.0.1 or 0.0.0.0", _ip_address),
    ("receiver", "port"): _whole(1, 65_535),
    ("receiver", "workers"): _whole(1, 256),
    ("receiver", "max_body_bytes"): _whole(1, 1024 * MIB),
    ("receiver", "tolerance_s"): _whole(1, 86_400),
    ("receiver", "body_timeout_s"): _seconds(0.1, 600),
    ("receiver", "tls_certificate"): _Rule("the path of a file", _path),
    ("receiver", "tls_key"): _Rule("the path of a file", _path),
    ("receiver", "metrics_host"): _Rule("an address", _text),
    ("receiver", "metrics_port"): _whole(1, 65_535),
}
