"""Give memory back between the packages of a load, not while it works on one."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa


def give_back_memory() -> None:
    """Give back what Arrow and the C library hold unused; a library that cannot keeps it.

    The allocators keep what is freed for the next of the same size. After a package those are
    the bodies, and what DuckDB needs next it takes elsewhere: together they would be the peak.
    """
    pa.default_memory_pool().release_unused()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it
    if trim is not None:
        trim(0)


@contextmanager
def no_search_for_cycles() -> Iterator[None]:
    """Keep Python from looking for dead cycles meanwhile; a long load has to do so itself.

    It looks after every few hundred new objects, and in a load there are ten thousands of lines
    alive and hardly a cycle.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
