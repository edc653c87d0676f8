"""What one run did, as values: the load fills it, the command prints it."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

from pipelines.schema import Outcome

if TYPE_CHECKING:  # a run with nothing to do must not import pyarrow to say so
    from pipelines.take import Decision


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A delivery that was set aside, or a stretch of damaged bytes, with its place."""

    segment: str
    place: str  # "line 17", or "offset 4096, 512 bytes"
    reason: str
    event_id: str | None = None


@dataclass(slots=True, kw_only=True)
class LoadReport:
    """The sum over all packages of one run. Counts are of deliveries unless named otherwise."""

    segment_count: int = 0
    delivery_count: int = 0
    event_count: int = 0
    repeat_count: int = 0
    conflict_count: int = 0
    set_aside: list[Refusal] = field(default_factory=list)
    damages: list[Refusal] = field(default_factory=list)
    row_counts: dict[str, int] = field(default_factory=dict)
    new_tables: list[str] = field(default_factory=list)
    new_columns: list[str] = field(default_factory=list)  # "table.column"
    load_ids: list[str] = field(default_factory=list)
    purged_load_ids: list[str] = field(default_factory=list)
    duration_s: float = 0.0

    @property
    def has_work(self) -> bool:
        return bool(self.segment_count)

    @property
    def needs_attention(self) -> bool:
        return bool(self.set_aside or self.damages or self.conflict_count)

    def add_decisions(self, decisions: list[Decision]) -> None:
        outcomes = [decision.outcome for decision in decisions]
        self.delivery_count += len(decisions)
        self.event_count += outcomes.count(Outcome.LOADED)
        self.repeat_count += outcomes.count(Outcome.REPEAT)
        self.conflict_count += outcomes.count(Outcome.CONFLICT)
        self.set_aside += [
            Refusal(
                segment=decision.line.segment,
                place=f"line {decision.line.number}",
                reason=decision.reason or "",
                event_id=decision.line.event_id,
            )
            for decision in decisions
            if decision.outcome is Outcome.SET_ASIDE
        ]

    def add(self, other: LoadReport) -> None:
        """Add what one package brought."""
        for field_ in fields(self):
            mine, theirs = getattr(self, field_.name), getattr(other, field_.name)
            if isinstance(mine, dict):
                theirs = {name: mine.get(name, 0) + count for name, count in theirs.items()}
                mine.update(theirs)
            else:
                setattr(self, field_.name, mine + theirs)
