"""Give freed memory back to the system between the packages of a load.

The allocators keep what is freed for the next of the same size. After a package those are the
bodies, and what DuckDB needs next it takes elsewhere: together they would be the peak.
"""

from __future__ import annotations

import ctypes

import pyarrow as pa


def give_back_memory() -> None:
    """Give back what Arrow and the C library hold unused; a library that cannot keeps it."""
    pa.default_memory_pool().release_unused()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it
    if trim is not None:
        trim(0)
