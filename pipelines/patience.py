"""Wait for a DuckDB file that somebody else holds, and say who; name other failures.

DuckDB lets one process write, and then nobody else read: an analyst who has the file
open, even read-only, makes dlt fail at once. Nothing is lost by waiting, since the
spool keeps what comes in.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from dlt.common.exceptions import DltException
from dlt.destinations.sql_client import SqlClientBase
from dlt.pipeline.exceptions import PipelineStepFailed
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_delay,
    wait_exponential,
)

from pipelines.errors import PreparationError, WarehouseError, WarehouseHeldError
from pipelines.progress import Progress

PATIENCE_S = 60.0
_HOLDER = re.compile(r"Conflicting lock is held in (?P<holder>.+?\(PID \d+\))")


def make_patience(progress: Progress, patience_s: float = PATIENCE_S) -> Retrying:
    """Make a caller that repeats `call(function, *args)` while another process holds the file."""

    def say_who(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        progress.say(f"waiting: {_holder(error)} holds the warehouse")

    return Retrying(
        retry=retry_if_exception(_is_held),
        stop=stop_after_delay(patience_s),
        wait=wait_exponential(multiplier=0.1, max=5),
        before_sleep=say_who,
        reraise=True,
    )


@contextmanager
def named_failures() -> Iterator[None]:
    """Turn what dlt and the destination raise into our errors, with what to do next."""
    try:
        yield
    except Exception as error:
        # dlt lets the driver's own error through where a connection cannot be opened.
        if not isinstance(error, DltException) and not SqlClientBase.is_dbapi_exception(error):
            raise
        if _is_held(error):
            raise WarehouseHeldError(
                f"{_holder(error)} holds the DuckDB file; close it there, then try again "
                "(nothing is lost: the spool keeps every event)"
            ) from error
        if isinstance(error, PipelineStepFailed) and error.step in ("extract", "normalize"):
            raise PreparationError(
                f"preparing the load failed: {_innermost(error)}; see that the disk of the spool "
                "has space left, then try again, and report it if it stays "
                "(nothing is lost: the spool keeps every event)"
            ) from error
        raise WarehouseError(
            f"the warehouse failed: {_innermost(error)}; mend that, then try again "
            "(nothing is lost: the spool keeps every event)"
        ) from error


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_held(error: BaseException) -> bool:
    return any("Could not set lock on file" in str(link) for link in _chain(error))


def _holder(error: BaseException | None) -> str:
    for link in _chain(error):
        if found := _HOLDER.search(str(link)):
            return found["holder"]
    return "another process"


def _innermost(error: BaseException) -> str:
    *_, last = _chain(error)
    lines = str(last).strip().splitlines()
    return lines[0] if lines else type(last).__name__
