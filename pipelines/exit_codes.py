"""The exit codes of `midbound`, which a scheduler may rely on."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """What a command tells whoever started it."""

    DONE = 0
    FAILED = 1  # nothing is lost; the message says what to mend
    USAGE = 2  # the options or the configuration
    NOTHING_TO_DO = 3
    BUSY = 4  # another load is running, or another process holds the warehouse
    NEEDS_ATTENTION = 5  # done, but something was set aside, damaged, or looks wrong
