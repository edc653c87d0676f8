"""The alarms ring for what no code raises, and not for junk from strangers."""

from __future__ import annotations

import argparse
from datetime import datetime

import pytest

from pipelines.alarms import find_alarms, parse_duration_s
from receiver.counts import Counts

NOW = "2026-11-23T12:00:00.000000Z"
NOW_S = datetime.fromisoformat(NOW).timestamp()
AN_HOUR_AGO = "2026-11-23T11:00:00.000000Z"
TWO_DAYS_AGO = "2026-11-21T12:00:00.000000Z"

WRONG_SECRET = (
    "every signed delivery is refused since {since}: the secret is probably wrong; compare "
    "receiver.webhook_secret with the endpoint's secret in the Midbound console"
)


def _refused(
    reason: str, at: str, accepted_at: str | None = None, skew_s: int | None = None
) -> Counts:
    return Counts(
        refused={reason: 3},
        last_refused_at={reason: at},
        last_accepted_at=accepted_at,
        clock_skew_s=skew_s,
    )


@pytest.mark.parametrize(
    ("accepted_at", "since"), [(None, "the beginning"), (TWO_DAYS_AGO, "2026-11-21T12:00:00Z")]
)
def test_a_wrong_secret_rings(accepted_at: str | None, since: str) -> None:
    counts = _refused("wrong_signature", AN_HOUR_AGO, accepted_at)
    assert find_alarms(counts, now_s=NOW_S) == [WRONG_SECRET.format(since=since)]


@pytest.mark.parametrize(
    ("skew_s", "when"),
    [(3600, "3,600 s ago"), (-301, "301 s in the future"), (None, "at another time")],
)
def test_a_wrong_clock_rings_and_says_by_how_much(skew_s: int | None, when: str) -> None:
    assert find_alarms(_refused("stale", AN_HOUR_AGO, skew_s=skew_s), now_s=NOW_S) == [
        f"deliveries are refused as signed {when}: this machine's clock is probably wrong; "
        "check that it is synchronised (NTP)"
    ]


def test_each_alarm_rings_for_itself() -> None:
    counts = _refused("wrong_signature", AN_HOUR_AGO)
    counts.add(_refused("stale", AN_HOUR_AGO, skew_s=400))
    assert len(find_alarms(counts, now_s=NOW_S, max_age_s=60)) == 3


@pytest.mark.parametrize(
    "counts",
    [
        Counts(),
        _refused("missing_header", AN_HOUR_AGO),
        _refused("wrong_signature", TWO_DAYS_AGO),
        _refused("wrong_signature", AN_HOUR_AGO, accepted_at=NOW),
        _refused("stale", AN_HOUR_AGO, accepted_at=NOW),
    ],
)
def test_what_is_well_does_not_ring(counts: Counts) -> None:
    assert find_alarms(counts, now_s=NOW_S) == []


def test_silence_rings_only_if_asked_for() -> None:
    counts = Counts(accepted=1, last_accepted_at=AN_HOUR_AGO)
    assert find_alarms(counts, now_s=NOW_S) == []
    assert find_alarms(counts, now_s=NOW_S, max_age_s=3_601) == []
    assert find_alarms(counts, now_s=NOW_S, max_age_s=3_599) == [
        "nothing was accepted since 2026-11-23T11:00:00Z: check that the receiver runs, and that "
        "Midbound still sends to its address"
    ]


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1_800), ("2h", 7_200), ("1d", 86_400)]
)
def test_durations_are_read(text: str, seconds: int) -> None:
    assert parse_duration_s(text) == seconds


@pytest.mark.parametrize("text", ["", "2", "h", "2 h", "-2h", "1.5h", "2w", "٣h"])
def test_other_texts_are_no_durations(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError) as caught:
        parse_duration_s(text)
    assert str(caught.value) == f"{text!r} is not a duration like 90s, 30m, 2h or 1d"
