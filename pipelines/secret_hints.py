"""Let dlt remember which types of settings are secrets.

A load resolves hundreds of configurations. For each setting dlt looks at many places of each
provider, and works out at each anew whether the setting's type makes it a secret. It depends on the
type alone, and takes longer than the looking: a small load spends much of its time on it.
"""

from __future__ import annotations

from functools import cache

from dlt.common.configuration import is_secret_hint, resolve
from dlt.common.configuration.providers import environ

_remembered = cache(is_secret_hint)


def remember_secret_hints() -> None:
    """Put a remembered answer where dlt asks most, for all of this process."""
    for module in (resolve, environ):
        module.is_secret_hint = _is_secret_hint  # type: ignore[attr-defined]


def _is_secret_hint(hint: type) -> bool:
    try:
        return _remembered(hint)
    except TypeError:  # not hashable, such as an annotation with a dict
        return is_secret_hint(hint)
