"""Keep secrets out of messages: a driver may quote the address that it could not read.

The edge of the command passes every message through here. What is secret is known by the
name of its setting, in the environment and in `.dlt/secrets.toml`.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

MIN_LENGTH = 4  # hiding anything shorter would only make holes in words
_SECRET_NAME = re.compile(r"secret|password|passphrase|token|private_key|api_key", re.IGNORECASE)
_CREDENTIALS_NAME = re.compile(r"credentials", re.IGNORECASE)
_PASSWORD_IN_ADDRESS = re.compile(r":([^:/@]+)@")


def hide_secrets(text: str, root: Path, environ: Mapping[str, str]) -> str:
    """Replace every secret that is configured below `root` or in the environment."""
    for secret in sorted(_find_secrets(root, environ), key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def _find_secrets(root: Path, environ: Mapping[str, str]) -> set[str]:
    settings = [*environ.items(), *_flatten("", _read_file(root / ".dlt" / "secrets.toml"))]
    found = {secret for name, value in settings for secret in _secrets_in(name, value)}
    return {secret for secret in found if len(secret) >= MIN_LENGTH}


def _secrets_in(name: str, value: str) -> Iterator[str]:
    if _SECRET_NAME.search(name):
        # Several secrets may share one variable, also as a list with brackets and quotes.
        yield from re.split(r"[\s,\[\]\"']+", value)
        yield value
    elif _CREDENTIALS_NAME.search(name):
        yield from _PASSWORD_IN_ADDRESS.findall(value)
        # The path of a DuckDB file is no secret, and a message without it would help nobody.
        if re.search(r"[@={]", value):
            yield value


def _flatten(name: str, value: object) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _flatten(f"{name}__{key}", part)
    elif isinstance(value, list):
        for part in value:
            yield from _flatten(name, part)
    else:
        yield name, str(value)


def _read_file(path: Path) -> dict[str, object]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # reading the settings says what is wrong with it
