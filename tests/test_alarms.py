"""The alarms ring for what no code raises, and not for junk from strangers."""

from __future__ import annotations

import argparse
from datetime import datetime

import pytest

from pipelines.alarms import find_alarms, parse_duration_s
from receiver.counts import Counts
from receiver.errors import DeliveryError

NOW = "2026-11-23T12:00:00.000000Z"
NOW_S = datetime.fromisoformat(NOW).timestamp()
TEN_MINUTES_AGO = "2026-11-23T11:50:00.000000Z"
AN_HOUR_AGO = "2026-11-23T11:00:00.000000Z"
TWO_DAYS_AGO = "2026-11-21T12:00:00.000000Z"
TOMORROW = "2026-11-24T12:00:00.000000Z"

WRONG_SECRET = (
    "every signed delivery is refused since {since}: the secret is probably wrong; compare "
    "receiver.webhook_secret with the endpoint's secret in the Midbound console"
)

WRONG_CLOCK = (
    "deliveries are refused as signed {when}: this machine's clock is probably wrong; check that "
    "it is synchronised (NTP)"
)
SILENCE = (
    "nothing was accepted since {since}: check that the receiver runs, and that Midbound still "
    "sends to its address"
)
CLOCK_WENT_BACK = (
    "an acceptance is dated 2026-11-24T12:00:00Z, in the future: this machine's clock went back, "
    "and until then nobody can tell what came last; check that it is synchronised (NTP), and then "
    "delete the file in the spool's counts/ that holds this date"
)
# What we cannot keep: whatever is accepted beside it, somebody has to look soon.
LOSSES = {
    "too_large": (
        "bodies are refused as too large, the last at {at}: if the receiver's log names an id of "
        "Midbound's beside reason='too_large', raise receiver.max_body_bytes, and the limit of the "
        "proxy"
    ),
    "spool_full": (
        "deliveries are answered 503 (spool_full), the last at {at}: the spool's disk has less "
        "than spool.min_free_bytes left, or cannot keep up; make room, for instance by moving the "
        "spool's loaded/ segments elsewhere"
    ),
    "spool_failed": (
        "deliveries are answered 503 (spool_failed), the last at {at}: the spool could not be "
        "written; the receiver's log says why, and this machine's disk may be full, read-only or "
        "failing"
    ),
    "spool_slow": (
        "deliveries are answered 503 (spool_slow), the last at {at}: the spool's disk does not "
        "answer in time; see what else keeps it busy, or put spool.path on a faster local disk"
    ),
    "unexpected": (
        "deliveries are answered 503 (unexpected), the last at {at}: the receiver has a bug; "
        "report what its log says beside reason='unexpected'"
    ),
}
# A stranger needs to know nothing to be refused for these.
JUNK = {
    "missing_header", "duplicate_header", "bad_id", "bad_timestamp", "broken_body", "slow_body",
    "encoded_body",
}  # fmt: skip


def _all_reasons(error: type[DeliveryError] = DeliveryError) -> set[str]:
    found = {error.reason} if hasattr(error, "reason") else set()
    return found.union(*(_all_reasons(kind) for kind in error.__subclasses__()))


def _refused(
    reason: str,
    at: str,
    accepted_at: str | None = None,
    skew_s: int | None = None,
    count: int = 3,
) -> Counts:
    return Counts(
        refused={reason: count},
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
        WRONG_CLOCK.format(when=when)
    ]


def test_one_stranger_with_an_old_timestamp_is_no_wrong_clock() -> None:
    """The age is checked before the signature, so that nobody has to have signed it."""
    assert find_alarms(_refused("stale", AN_HOUR_AGO, skew_s=900, count=2), now_s=NOW_S) == []


@pytest.mark.parametrize("reason", LOSSES)
@pytest.mark.parametrize(
    ("refused_at", "accepted_at", "shown"),
    [
        (AN_HOUR_AGO, None, "2026-11-23T11:00:00Z"),
        (AN_HOUR_AGO, TWO_DAYS_AGO, "2026-11-23T11:00:00Z"),
        (TEN_MINUTES_AGO, NOW, "2026-11-23T11:50:00Z"),
    ],
)
def test_what_we_could_not_keep_rings_even_if_other_deliveries_are_accepted(
    reason: str, refused_at: str, accepted_at: str | None, shown: str
) -> None:
    counts = _refused(reason, refused_at, accepted_at, count=1)
    assert find_alarms(counts, now_s=NOW_S) == [LOSSES[reason].format(at=shown)]


@pytest.mark.parametrize("reason", LOSSES)
@pytest.mark.parametrize(("refused_at", "accepted_at"), [(AN_HOUR_AGO, NOW), (TWO_DAYS_AGO, None)])
def test_what_could_be_kept_again_for_an_hour_rings_no_more(
    reason: str, refused_at: str, accepted_at: str | None
) -> None:
    assert find_alarms(_refused(reason, refused_at, accepted_at), now_s=NOW_S) == []


@pytest.mark.parametrize("reason", sorted(JUNK))
def test_junk_from_strangers_rings_nothing(reason: str) -> None:
    assert find_alarms(_refused(reason, NOW), now_s=NOW_S) == []


def test_for_every_reason_somebody_has_decided_whether_it_rings() -> None:
    assert _all_reasons() == {"wrong_signature", "stale", *LOSSES, *JUNK}


def test_each_alarm_rings_for_itself() -> None:
    counts = _refused("wrong_signature", AN_HOUR_AGO)
    counts.add(_refused("stale", AN_HOUR_AGO, skew_s=400))
    counts.add(_refused("spool_full", AN_HOUR_AGO))
    assert find_alarms(counts, now_s=NOW_S, max_age_s=60) == [
        WRONG_SECRET.format(since="the beginning"),
        WRONG_CLOCK.format(when="400 s ago"),
        LOSSES["spool_full"].format(at="2026-11-23T11:00:00Z"),
        SILENCE.format(since="the beginning"),
    ]


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
        SILENCE.format(since="2026-11-23T11:00:00Z")
    ]


@pytest.mark.parametrize(
    ("reason", "alarm"),
    [
        ("wrong_signature", WRONG_SECRET.format(since="the clock went back")),
        ("stale", WRONG_CLOCK.format(when="86,400 s in the future")),
        ("spool_failed", LOSSES["spool_failed"].format(at="2026-11-23T11:00:00Z")),
    ],
)
def test_an_acceptance_in_the_future_hides_no_alarm_and_is_told(reason: str, alarm: str) -> None:
    counts = _refused(reason, AN_HOUR_AGO, accepted_at=TOMORROW, skew_s=-86_400)
    assert find_alarms(counts, now_s=NOW_S, max_age_s=60) == [
        CLOCK_WENT_BACK,
        alarm,
        SILENCE.format(since="the clock went back"),
    ]


@pytest.mark.parametrize("reason", ["wrong_signature", "stale", *LOSSES])
def test_a_refusal_in_the_future_is_not_the_last_thing_that_happened(reason: str) -> None:
    assert find_alarms(_refused(reason, TOMORROW, accepted_at=AN_HOUR_AGO), now_s=NOW_S) == []


@pytest.mark.parametrize("at", [TOMORROW, "2026-11-23T12:02:00.000000Z"])
def test_a_refusal_in_the_future_rings_if_nothing_was_ever_accepted(at: str) -> None:
    counts = _refused("wrong_signature", at)
    assert find_alarms(counts, now_s=NOW_S) == [WRONG_SECRET.format(since="the beginning")]


def test_a_clock_that_is_being_put_right_by_seconds_rings_nothing() -> None:
    soon = "2026-11-23T12:00:59.000000Z"
    counts = _refused("wrong_signature", AN_HOUR_AGO, accepted_at=soon)
    assert find_alarms(counts, now_s=NOW_S, max_age_s=60) == []


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
