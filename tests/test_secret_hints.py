"""dlt asks us which settings are secrets, and is told what it would have said itself."""

from __future__ import annotations

from typing import Annotated, Literal

import pytest
from dlt.common.configuration import is_secret_hint, resolve
from dlt.common.configuration.providers import environ
from dlt.common.configuration.specs import ConnectionStringCredentials
from dlt.common.typing import TSecretStrValue, TSecretValue

from pipelines.secret_hints import remember_secret_hints

HINTS = [
    str,
    int | None,
    list[str],
    Literal["a", "b"],
    TSecretValue,
    TSecretStrValue,
    TSecretStrValue | None,
    ConnectionStringCredentials,
    Annotated[str, {"not": "hashable"}],
]


@pytest.mark.parametrize("module", [resolve, environ], ids=["resolve", "environ"])
def test_the_answer_is_that_of_dlt(module: object) -> None:
    remember_secret_hints()
    ask = module.is_secret_hint  # type: ignore[attr-defined]
    assert ask is not is_secret_hint
    for _ in range(2):
        assert [ask(hint) for hint in HINTS] == [is_secret_hint(hint) for hint in HINTS]


def test_some_of_the_settings_are_secrets() -> None:
    assert {is_secret_hint(hint) for hint in HINTS} == {True, False}
