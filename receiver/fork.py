"""Start an object over in a child process: threads and locks do not survive a fork."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable


def call_after_fork(method: Callable[[], None]) -> None:
    """Call a bound method in each child that is forked from now on, while its object lives."""
    reference = weakref.WeakMethod(method)

    def call() -> None:
        alive = reference()
        if alive is not None:
            alive()

    os.register_at_fork(after_in_child=call)
