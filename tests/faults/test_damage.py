"""Whatever happens to a sealed segment's bytes is noticed, and costs no other line.

`test_segment` flips every bit, cuts everywhere and names each kind of damage; here are blocks as
disks lose and misplace them, lines missing, doubled and swapped, and seals gone astray: all of them
through the scan, and a sample of them through a whole load.

What must be found is not computed with our own reader: a line has to be loaded if its bytes are
still there, and a damage has to be told if any byte of the segment is another one.

`TORTURE_DAMAGES` sets how many damaged segments are loaded.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random

import pytest
from sizes import size
from spools import Place, Sent, segment_bytes, to_body

from pipelines.cli import main
from pipelines.exit_codes import ExitCode
from receiver.record import decode_line, segment_seed
from receiver.scan import scan_segment

LOADED_COUNT = size("DAMAGES", usual=250, torture=5000)
SEED = 3
BLOCK_SIZES = (512, 4096)
PAD_SIZES = (3000, 40, 700, 2500, 10, 1300, 4200, 300, 5000, 90, 2000, 600)


@dataclass(frozen=True)
class Segment:
    """A sealed segment as it was written."""

    name: str
    events: list[Sent]
    data: bytes

    @property
    def parts(self) -> list[bytes]:
        """Its lines, and then its seal."""
        return self.data.splitlines(keepends=True)

    @property
    def lines(self) -> list[bytes]:
        return self.parts[:-1]

    def ids_in(self, data: bytes) -> list[str]:
        """Give the ids of the lines whose bytes are in `data`, whatever is around them.

        Only something has to follow: a line cut just before its newline counts as torn.
        """
        return [
            event_id
            for (event_id, _), line in zip(self.events, self.lines, strict=True)
            if line[:-1] in data[:-1]
        ]


Change = Callable[[Segment, Segment], bytes]


def make_segment(number: int) -> Segment:
    """Make a segment whose lines are as long as those of any other, but not the same."""
    chance = Random(number)
    name = f"s{number:06d}"
    events: list[Sent] = []
    for index, size_bytes in enumerate(PAD_SIZES):
        event_id = f"evt_{number:06d}_{index:02d}"
        pad = chance.randbytes(size_bytes // 2).hex()
        body = {"id": event_id, "type": "identity.resolved", "data": {"pad": pad}}
        events.append((event_id, to_body(body)))
    return Segment(name, events, segment_bytes(name, events))


def overwrite(offset: int, size_bytes: int, segment: Segment, other: Segment) -> bytes:
    """Put zeros where a block was."""
    end = min(offset + size_bytes, len(segment.data))
    return segment.data[:offset] + bytes(end - offset) + segment.data[end:]


def take_over(offset: int, size_bytes: int, segment: Segment, other: Segment) -> bytes:
    """Put a block of another segment where it lies there."""
    end = offset + size_bytes
    return segment.data[:offset] + other.data[offset:end] + segment.data[end:]


def misplace(offset: int, source: int, size_bytes: int, segment: Segment, other: Segment) -> bytes:
    """Put a block of the same segment elsewhere."""
    block = segment.data[source : source + size_bytes]
    return segment.data[:offset] + block + segment.data[offset + len(block) :]


def cut(size_bytes: int, segment: Segment, other: Segment) -> bytes:
    return segment.data[:size_bytes]


def arrange(order: tuple[int, ...], segment: Segment, other: Segment) -> bytes:
    """Put lines and seal in another order; a part may be missing, or there twice."""
    return b"".join(segment.parts[index] for index in order)


def swap_names(segment: Segment, other: Segment) -> bytes:
    """Put the bytes of another segment under this one's name."""
    return other.data


def changes() -> dict[str, list[Change]]:
    """Give all changes, by their kind."""
    size_bytes = len(make_segment(0).data)
    found: dict[str, list[Change]] = {}
    for block in BLOCK_SIZES:
        offsets = range(0, size_bytes, block)
        found[f"zeros, {block}"] = [partial(overwrite, offset, block) for offset in offsets]
        found[f"of another segment, {block}"] = [
            partial(take_over, offset, block) for offset in offsets
        ]
        found[f"of another place, {block}"] = [
            partial(misplace, offset, source, block)
            for offset in offsets
            for source in offsets
            if source != offset
        ]
    found["cut"] = [partial(cut, end) for end in range(size_bytes)]
    for kind, orders in arrangements(len(PAD_SIZES)).items():
        found[kind] = [partial(arrange, tuple(order)) for order in orders]
    found["the name of another"] = [swap_names]
    return found


def arrangements(count: int) -> dict[str, list[list[int]]]:
    """Give orders of `count` lines and their seal, which has the number `count`."""
    every = [*range(count + 1)]
    seal = count
    return {
        "a line missing": [every[:n] + every[n + 1 :] for n in range(count)],
        "two lines missing": [
            [part for part in every if part not in (a, b)]
            for a in range(count)
            for b in range(a + 1, count)
        ],
        "a line doubled": [[*every[:n], n, *every[n:]] for n in range(count)],
        "a line again later": [
            [*every[:b], a, *every[b:]] for a in range(count) for b in range(a + 2, count + 1)
        ],
        "two lines swapped": [
            [{a: b, b: a}.get(part, part) for part in every]
            for a in range(count)
            for b in range(a + 1, count)
        ],
        "the seal missing": [every[:-1]],
        "the seal doubled": [[*every, seal]],
        "the seal too early": [[*every[:n], seal, *every[n:-1]] for n in range(count)],
        "the seal there twice": [[*every[:n], seal, *every[n:]] for n in range(count)],
        "a line after the seal": [[*every, n] for n in range(count)],
        "only the seal": [[seal]],
    }


CHANGES = changes()


@pytest.mark.parametrize("kind", CHANGES)
def test_every_change_is_noticed_and_costs_only_the_lines_it_hit(kind: str) -> None:
    segment, other = make_segment(0), make_segment(1)
    seed = segment_seed(segment.name)
    bodies = dict(segment.events)
    tried = kept = 0
    for change in CHANGES[kind]:
        data = change(segment, other)
        if data == segment.data:
            continue
        content = scan_segment(segment.name, data)
        assert content.damages, f"{kind}: {change} was not noticed"
        ids = []
        for start, end, _ in content.lines:
            delivery = decode_line(data[start : end - 1] + b"\n", seed=seed).delivery
            assert delivery.body == bodies[delivery.webhook_id]
            ids.append(delivery.webhook_id)
        assert sorted(ids) == segment.ids_in(data), f"{kind}: {change}"
        tried, kept = tried + 1, kept + len(ids)
    print(f"{kind}: {tried:,} of {tried:,} noticed, {kept:,} other lines all kept")
    assert tried


@dataclass(frozen=True)
class Damaged:
    """A segment, the bytes that are left of it, and what happened to them."""

    kind: str
    segment: Segment
    data: bytes


def sample_damages() -> Iterator[Damaged]:
    """Give some changes of each kind, each to a segment of its own."""
    chance = Random(SEED)
    other = make_segment(999_999)
    each = -(-LOADED_COUNT // len(CHANGES))
    for kind, known in CHANGES.items():
        for change in chance.sample(known, min(each, len(known))):
            segment = make_segment(chance.randrange(10**6 - 1))
            data = change(segment, other)
            if data != segment.data:
                yield Damaged(kind, segment, data)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.chdir(tmp_path)
    return Place(tmp_path)


def load(capsys: pytest.CaptureFixture[str]) -> tuple[int, dict]:
    """Run `midbound load`; give its exit code and its report."""
    capsys.readouterr()
    code = main(["load", "--json"])
    return code, json.loads(capsys.readouterr().out)


def rows_by_segment(place: Place) -> dict[str, dict[str, str]]:
    """Give what was loaded: for each segment, event ids and the digests of their bodies."""
    found: dict[str, dict[str, str]] = {}
    for segment, event_id, sha256 in place.query(
        "SELECT segment, event_id, body_sha256 FROM deliveries WHERE outcome = 'loaded'"
    ):
        found.setdefault(segment, {})[event_id] = sha256
    return found


def kept_damages(place: Place) -> Counter[tuple[str, int, bytes, str]]:
    """Give what is in quarantine: segment, offset, the bytes, the reason."""
    found: Counter[tuple[str, int, bytes, str]] = Counter()
    for path in place.spool.quarantine.glob("*.json"):
        told = json.loads(path.read_bytes())
        data = path.with_suffix(".bin").read_bytes()
        assert len(data) == told["size_bytes"]
        found[told["segment"], told["offset"], data, told["reason"]] += 1
    return found


def told_damages(report: dict, data_of: dict[str, bytes]) -> Counter[tuple[str, int, bytes, str]]:
    """Give what the report says of the same, with the bytes that were in the segment."""
    found: Counter[tuple[str, int, bytes, str]] = Counter()
    for told in report["damages"]:
        offset, size_bytes = map(int, re.findall(r"[0-9]+", told["place"]))
        data = data_of[told["segment"]][offset : offset + size_bytes]
        found[told["segment"], offset, data, told["reason"]] += 1
    return found


def test_a_load_tells_every_damage_keeps_its_bytes_and_loads_all_other_lines(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = {one.segment.name: one for one in sample_damages()}
    whole = [make_segment(number) for number in range(1_000_000, 1_000_003)]
    data_of = {name: one.data for name, one in damaged.items()}
    place.spool.create()
    for name, data in [*data_of.items(), *((one.name, one.data) for one in whole)]:
        (place.spool.ready / f"{name}.jsonl").write_bytes(data)

    code, report = load(capsys)
    assert code == ExitCode.NEEDS_ATTENTION
    assert {told["segment"] for told in report["damages"]} == damaged.keys()
    assert kept_damages(place) == told_damages(report, data_of)
    expected = {one.name: digests(one.events) for one in whole}
    for name, one in damaged.items():
        ids = one.segment.ids_in(one.data)
        expected |= {name: digests(one.segment.events, ids)} if ids else {}
    assert rows_by_segment(place) == expected
    assert place.spool.ready_segments() == []
    for name, data in data_of.items():
        assert (place.spool.loaded / f"{name}.jsonl").read_bytes() == data

    last = make_segment(1_000_003)
    (place.spool.ready / f"{last.name}.jsonl").write_bytes(last.data)
    code, report = load(capsys)
    assert (code, report["damages"]) == (ExitCode.DONE, [])
    expected[last.name] = digests(last.events)
    assert rows_by_segment(place) == expected
    assert load(capsys)[0] == ExitCode.NOTHING_TO_DO
    kinds = Counter(one.kind for one in damaged.values())
    with capsys.disabled():
        print(
            f"\n{len(damaged)} damaged segments of {len(kinds)} kinds: all noticed, "
            f"{sum(map(len, expected.values())):,} lines whose bytes were left all loaded"
        )


def digests(events: list[Sent], ids: list[str] | None = None) -> dict[str, str]:
    """Give the SHA-256 of each body, by event id."""
    return {
        event_id: hashlib.sha256(body).hexdigest()
        for event_id, body in events
        if ids is None or event_id in ids
    }
