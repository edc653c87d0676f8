"""How large a fault test is: small enough for every change, or as large as one has time for.

`TORTURE=1` (`make torture`) takes the large size of every test; `TORTURE_<NAME>=<number>`
sets one of them.
"""

from __future__ import annotations

import os


def size(name: str, *, usual: int, torture: int) -> int:
    """Give the size called `name` for this run."""
    is_torture = os.environ.get("TORTURE", "") not in ("", "0")
    return int(os.environ.get(f"TORTURE_{name}", torture if is_torture else usual))


# For tests that may take longer than others: long enough for a slow machine, and short enough that
# one that hangs is named before whoever waits for all of them gives up.
LIMIT_S = size("LIMIT_S", usual=1200, torture=24 * 3600)
