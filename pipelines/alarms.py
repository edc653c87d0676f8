"""Find the failures that no code raises: everything refused, or nothing sent at all.

Pure: counts and the time in, sentences out. Junk from strangers rings nothing: only
deliveries that carried all three headers count, and only while none was accepted since.
"""

from __future__ import annotations

import argparse
import re
from datetime import datetime

from pipelines.text_table import show_instant
from receiver.counts import Counts

DAY_S = 86_400.0
_UNITS_S = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


def find_alarms(counts: Counts, *, now_s: float, max_age_s: float | None = None) -> list[str]:
    """Say what looks wrong at the door, and what to do about it; empty when all is well."""
    alarms = []
    accepted_at = show_instant(counts.last_accepted_at) or "the beginning"
    if _is_refusing_all(counts, "wrong_signature", now_s):
        alarms.append(
            f"every signed delivery is refused since {accepted_at}: the secret is probably wrong; "
            "compare receiver.webhook_secret with the endpoint's secret in the Midbound console"
        )
    if _is_refusing_all(counts, "stale", now_s):
        alarms.append(
            f"deliveries are refused as signed {_describe_skew(counts.clock_skew_s)}: this "
            "machine's clock is probably wrong; check that it is synchronised (NTP)"
        )
    if max_age_s is not None and _age_s(counts.last_accepted_at, now_s) > max_age_s:
        alarms.append(
            f"nothing was accepted since {accepted_at}: check that the receiver runs, and that "
            "Midbound still sends to its address"
        )
    return alarms


def parse_duration_s(text: str) -> float:
    """Read a duration like 90s, 30m, 2h or 1d, for argparse."""
    found = re.fullmatch(r"([0-9]{1,9})([smhd])", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration like 90s, 30m, 2h or 1d")
    return float(found[1]) * _UNITS_S[found[2]]


def _is_refusing_all(counts: Counts, reason: str, now_s: float) -> bool:
    refused_at = counts.last_refused_at.get(reason)
    return (
        refused_at is not None
        and refused_at > (counts.last_accepted_at or "")
        and _age_s(refused_at, now_s) < DAY_S
    )


def _describe_skew(skew_s: int | None) -> str:
    if skew_s is None:
        return "at another time"
    return f"{skew_s:,} s ago" if skew_s > 0 else f"{-skew_s:,} s in the future"


def _age_s(instant: str | None, now_s: float) -> float:
    return now_s - datetime.fromisoformat(instant).timestamp() if instant else float("inf")
