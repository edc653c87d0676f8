"""Every error of the scheduled side, drawn once.

LoadError                     a run that did not do its work; nothing is lost
├── PreparationError              its files could not be made on this machine
├── WarehouseHeldError        another process holds the DuckDB file
├── WarehouseError            the destination failed; its own words are in the message
└── VerificationError         what arrived is not what was sent; it was taken back
"""

from __future__ import annotations


class LoadError(Exception):
    """A run that did not finish; the segments stay where they are, and the next run mends."""


class PreparationError(LoadError):
    """What dlt loads from could not be made: the disk is full, or a mistake of ours."""


class WarehouseHeldError(LoadError):
    """Another process holds the DuckDB file; the message names it where DuckDB does."""


class WarehouseError(LoadError):
    """The destination could not be reached or failed in the middle."""


class VerificationError(LoadError):
    """The warehouse does not hold what the load has brought; its rows were taken back."""
