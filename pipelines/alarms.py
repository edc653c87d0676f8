"""Find the failures that no code raises: events that we refuse, or nothing sent at all.

Pure: counts and the time in, sentences out. What a stranger can cause who knows nothing rings
nothing: a missing, doubled or malformed header, a body that is broken, slow or compressed. The
rest, and what it takes:

- A wrong secret or clock refuses everything, so it rings only while nothing was accepted since. Any
  request with three well-formed headers can look like either. The age is checked before the
  signature, so for the clock it takes three of them.
- What we could not keep was lost if the sender does not come again, whatever else was accepted, so
  it rings for an hour even then. 503 is answered to signed deliveries only, or for a bug of ours.
  A length is checked before the headers, so "too large" may come from a stranger, and says so.
"""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from datetime import datetime

from pipelines.text_table import show_instant
from receiver.counts import Counts

DAY_S = 86_400.0
HOUR_S = 3_600.0
# A clock that is being put right steps by seconds; more than this, and it was wrong.
CLOCK_STEP_S = 60.0
_UNITS_S = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rule:
    """When refusals of one reason ring, and with which sentence."""

    reason: str
    sentence: str  # {since}: of the last acceptance; {at}: of the last refusal; {skew}: in words
    min_count: int = 1
    is_loss: bool = False  # it then rings for an hour, whatever was accepted since


_RULES = (
    _Rule(
        reason="wrong_signature",
        sentence=(
            "every signed delivery is refused since {since}: the secret is probably wrong; compare "
            "receiver.webhook_secret with the endpoint's secret in the Midbound console"
        ),
    ),
    _Rule(
        reason="stale",
        min_count=3,
        sentence=(
            "deliveries are refused as signed {skew}: this machine's clock is probably wrong; "
            "check that it is synchronised (NTP)"
        ),
    ),
    _Rule(
        reason="too_large",
        is_loss=True,
        sentence=(
            "bodies are refused as too large, the last at {at}: if the receiver's log names an id "
            "of Midbound's beside reason='too_large', raise receiver.max_body_bytes, and the limit "
            "of the proxy"
        ),
    ),
    _Rule(
        reason="spool_full",
        is_loss=True,
        sentence=(
            "deliveries are answered 503 (spool_full), the last at {at}: the spool's disk has less "
            "than spool.min_free_bytes left, or cannot keep up; make room, for instance by moving "
            "the spool's loaded/ segments elsewhere"
        ),
    ),
    _Rule(
        reason="spool_failed",
        is_loss=True,
        sentence=(
            "deliveries are answered 503 (spool_failed), the last at {at}: the spool could not be "
            "written; the receiver's log says why, and this machine's disk may be full, read-only "
            "or failing"
        ),
    ),
    _Rule(
        reason="spool_slow",
        is_loss=True,
        sentence=(
            "deliveries are answered 503 (spool_slow), the last at {at}: the spool's disk does not "
            "answer in time; see what else keeps it busy, or put spool.path on a faster local disk"
        ),
    ),
    _Rule(
        reason="unexpected",
        is_loss=True,
        sentence=(
            "deliveries are answered 503 (unexpected), the last at {at}: the receiver has a bug; "
            "report what its log says beside reason='unexpected'"
        ),
    ),
)


def find_alarms(counts: Counts, *, now_s: float, max_age_s: float | None = None) -> list[str]:
    """Say what looks wrong at the door, and what to do about it; empty when all is well.

    An instant in the future was stamped before the clock went back: as the last thing that happened
    it would hide all that happens now, so it counts as unknown.
    """
    alarms = []
    accepted_at = counts.last_accepted_at
    since = show_instant(accepted_at) or "the beginning"
    if _is_in_future(accepted_at, now_s):
        alarms.append(
            f"an acceptance is dated {since}, in the future: this machine's clock went back, and "
            "until then nobody can tell what came last; check that it is synchronised (NTP), and "
            "then delete the file in the spool's counts/ that holds this date"
        )
        accepted_at, since = None, "the clock went back"
    for rule in _RULES:
        if _rings(rule, counts, accepted_at, now_s):
            at = show_instant(counts.last_refused_at[rule.reason])
            skew = _describe_skew(counts.clock_skew_s)
            alarms.append(rule.sentence.format(since=since, at=at, skew=skew))
    if max_age_s is not None and _age_s(accepted_at, now_s) > max_age_s:
        alarms.append(
            f"nothing was accepted since {since}: check that the receiver runs, and that "
            "Midbound still sends to its address"
        )
    return alarms


def parse_duration_s(text: str) -> float:
    """Read a duration like 90s, 30m, 2h or 1d, for argparse."""
    found = re.fullmatch(r"([0-9]{1,9})([smhd])", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration like 90s, 30m, 2h or 1d")
    return float(found[1]) * _UNITS_S[found[2]]


def _rings(rule: _Rule, counts: Counts, accepted_at: str | None, now_s: float) -> bool:
    refused_at = counts.last_refused_at.get(rule.reason)
    if refused_at is None or counts.refused.get(rule.reason, 0) < rule.min_count:
        return False
    if _is_in_future(refused_at, now_s):
        # Before or after what was accepted by a clock that is right? If in doubt, before.
        return accepted_at is None and refused_at > (counts.last_accepted_at or "")
    age_s = _age_s(refused_at, now_s)
    is_last = refused_at > (accepted_at or "")
    return (is_last and age_s < DAY_S) or (rule.is_loss and age_s < HOUR_S)


def _is_in_future(instant: str | None, now_s: float) -> bool:
    return _age_s(instant, now_s) < -CLOCK_STEP_S


def _describe_skew(skew_s: int | None) -> str:
    if skew_s is None:
        return "at another time"
    return f"{skew_s:,} s ago" if skew_s > 0 else f"{-skew_s:,} s in the future"


def _age_s(instant: str | None, now_s: float) -> float:
    return now_s - datetime.fromisoformat(instant).timestamp() if instant else float("inf")
