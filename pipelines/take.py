"""Take the lines of sealed segments, and decide what becomes of each delivery.

Deciding is pure: lines in order, and what the warehouse holds already, give an outcome
for each line. The first delivery of an event wins; a later one is a repeat, or a
conflict if its body differs; a signed body that cannot become rows is set aside. All of
them are recorded in `deliveries`, none is dropped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from pipelines.bodies import NotLoadableError, may_be_too_deep, read_body
from pipelines.schema import Outcome
from receiver.hashing import update
from receiver.record import decode_body, split_line
from receiver.segment import SegmentContent


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TakenLine:
    """One accepted delivery, as the spool has it; there is one object of each."""

    segment: str
    number: int
    event_id: str
    sent_at_s: int
    received_at: str
    body: bytes
    sha256: str
    # Whether the receiver has proven the body to be JSON, and it is an object.
    is_object: bool


@dataclass(slots=True, kw_only=True)
class Decision:
    """A line and what becomes of it; `reason` where it is not obvious."""

    line: TakenLine
    outcome: Outcome
    reason: str | None = None

    def set_aside(self, reason: str) -> None:
        self.outcome, self.reason = Outcome.SET_ASIDE, reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Holdings:
    """What the warehouse holds already of the events and segments at hand."""

    event_sha256: Mapping[str, str] = field(default_factory=dict)
    lines: AbstractSet[tuple[str, int]] = frozenset()


def take_lines(segment: SegmentContent) -> list[TakenLine]:
    """Give the good lines of a segment in order."""
    return [_take_line(segment, span.start, span.end) for span in segment.lines]


def _take_line(segment: SegmentContent, start: int, end: int) -> TakenLine:
    envelope = split_line(segment.data, start, end)
    body = decode_body(envelope.kind, segment.data[envelope.start : envelope.end])
    return TakenLine(
        segment=segment.name,
        number=envelope.n,
        event_id=envelope.webhook_id,
        sent_at_s=int(envelope.webhook_timestamp),
        received_at=envelope.received_at,
        body=body,
        sha256=_sha256(body),
        is_object=envelope.kind == "event" and body.lstrip(b" \t").startswith(b"{"),
    )


def _sha256(body: bytes) -> str:
    digest = hashlib.sha256()
    update(digest, body)
    return digest.hexdigest()


def decide(
    lines: Iterable[TakenLine], held: Holdings, flat: AbstractSet[TakenLine] = frozenset()
) -> list[Decision]:
    """Decide each line; lines that an earlier load has recorded are left out.

    Those that are flattened already (`flat`) have shown that they can become rows.
    """
    sha256_of = dict(held.event_sha256)
    decisions: list[Decision] = []
    for line in lines:
        if (line.segment, line.number) in held.lines:
            continue
        decision = _decide_line(line, sha256_of.get(line.event_id), is_flat=line in flat)
        if decision.outcome is Outcome.LOADED:
            sha256_of[line.event_id] = line.sha256
        decisions.append(decision)
    return decisions


def _decide_line(line: TakenLine, known_sha256: str | None, *, is_flat: bool) -> Decision:
    if known_sha256 == line.sha256:
        return Decision(line=line, outcome=Outcome.REPEAT)
    if known_sha256 is not None:
        reason = f"another body was loaded first (SHA-256 {known_sha256})"
        return Decision(line=line, outcome=Outcome.CONFLICT, reason=reason)
    if not is_flat and (not line.is_object or may_be_too_deep(line.body)):
        try:
            read_body(line.body)
        except NotLoadableError as error:
            return Decision(line=line, outcome=Outcome.SET_ASIDE, reason=str(error))
    return Decision(line=line, outcome=Outcome.LOADED)
