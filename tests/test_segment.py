"""A segment is read to its last good byte, and no damage passes: each kind, each bit, each cut."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from mounts import run, try_first

from receiver.errors import BusyError, SpoolError
from receiver.record import Delivery, decode_line, encode_line, encode_seal, segment_seed
from receiver.scan import Damage, SegmentContent, scan_segment
from receiver.segment import (
    Spool,
    load_lock,
    mark_loaded,
    quarantine,
    read_segment,
    segment_name,
)

NAME = "20261123T172205.123456Z-17-c0ffee"
BODIES = [b'{"a":0}', b"not json\n", b"\xff", b'{"d":3}']
SEED = segment_seed(NAME)


def make_line(n: int, seed: int = SEED) -> bytes:
    return encode_line(
        Delivery(
            webhook_id=f"evt_{n}",
            webhook_timestamp="1739571908",
            webhook_signature="v1,c2ln",
            received_at="2026-11-23T17:22:05.123456Z",
            body=BODIES[n % len(BODIES)],
        ),
        n=n,
        seed=seed,
    )


LINES = [make_line(n) for n in range(4)]


def seal_for(data: bytes, count: int) -> bytes:
    digest = hashlib.sha256(data).hexdigest()
    return encode_seal(count=count, size_bytes=len(data), sha256=digest, seed=SEED)


def sealed(lines: list[bytes]) -> bytes:
    data = b"".join(lines)
    return data + seal_for(data, len(lines))


GOOD = sealed(LINES)


def numbers(content: SegmentContent) -> list[int]:
    """Decode every line that was found good, and give the numbers; the bytes must be the line's."""
    for line in content.lines:
        text = content.data[line.start : line.end - 1] + b"\n"
        assert decode_line(text, seed=SEED).n == line.n
        assert text == LINES[line.n]
    return [line.n for line in content.lines]


def reasons(content: SegmentContent) -> list[tuple[int, int, str]]:
    return [(damage.offset, damage.size_bytes, damage.reason) for damage in content.damages]


def at(n: int) -> int:
    """Give the offset of line n."""
    return sum(len(line) for line in LINES[:n])


def test_an_undamaged_segment_has_all_lines_and_no_damage() -> None:
    content = scan_segment(NAME, GOOD)
    assert numbers(content) == [0, 1, 2, 3]
    assert content.damages == []
    assert content.is_sealed


def test_an_open_segment_needs_no_seal() -> None:
    content = scan_segment(NAME, b"".join(LINES), is_open=True)
    assert (numbers(content), content.damages, content.is_sealed) == ([0, 1, 2, 3], [], False)


@pytest.mark.parametrize(
    ("data", "kept", "found"),
    [
        pytest.param(b"", [], [(0, 0, "the seal is missing")], id="an empty file"),
        pytest.param(
            b"".join(LINES), [0, 1, 2, 3], [(at(4), 0, "the seal is missing")], id="no seal"
        ),
        pytest.param(
            GOOD[: at(3) + 50],
            [0, 1, 2],
            [(at(3), 50, "the last line is torn"), (at(3) + 50, 0, "the seal is missing")],
            id="a torn line",
        ),
        pytest.param(
            b"".join([LINES[0], bytes(len(LINES[1])), LINES[2], LINES[3], seal_for(b"", 0)]),
            [0, 2, 3],
            [
                (at(1), len(LINES[1]), "zeros where lines should be"),
                (at(2), 0, "line 1 is missing"),
            ],
            id="zeros",
        ),
        pytest.param(
            b"".join([LINES[0], make_line(1, seed=1), LINES[2], LINES[3], seal_for(b"", 0)]),
            [0, 2, 3],
            [
                (at(1), len(LINES[1]), "the checksum does not fit"),
                (at(2), 0, "line 1 is missing"),
            ],
            id="a line of another segment",
        ),
        pytest.param(
            b"".join([LINES[0], LINES[3], seal_for(b"", 0)]),
            [0, 3],
            [(at(1), 0, "lines 1 to 2 are missing")],
            id="lines missing in the middle",
        ),
        pytest.param(
            b"".join([*LINES[:3], seal_for(b"".join(LINES), 4)]),
            [0, 1, 2],
            [(at(3), 0, f"the seal says 4 lines in {at(4)} bytes, here are 3 in {at(3)}")],
            id="a line missing at the end",
        ),
        pytest.param(
            b"".join([LINES[0], LINES[1], LINES[1], LINES[2], seal_for(b"", 0)]),
            [0, 1, 2],
            [(at(2), len(LINES[1]), "line 1 is there again")],
            id="a line twice",
        ),
        pytest.param(
            b"".join([LINES[0], LINES[2], LINES[1], seal_for(b"", 0)]),
            [0, 2, 1],
            [
                (at(1), 0, "line 1 is missing"),
                (at(1) + len(LINES[2]), 0, "line 1 is out of place"),
            ],
            id="lines that changed places",
        ),
        pytest.param(
            b"".join([*LINES, encode_seal(count=4, size_bytes=at(4), sha256="0" * 64, seed=SEED)]),
            [0, 1, 2, 3],
            [(at(4), 0, "the digest in the seal does not fit")],
            id="another digest",
        ),
        pytest.param(
            b"".join([*LINES[:3], seal_for(b"".join(LINES[:3]), 3), LINES[3]]),
            [0, 1, 2, 3],
            [
                (at(3), 0, "there are bytes after the seal"),
                (len(GOOD), 0, "the seal is missing"),
            ],
            id="a line after the seal",
        ),
    ],
)
def test_each_damage_is_named_and_the_other_lines_are_kept(
    data: bytes, kept: list[int], found: list[tuple[int, int, str]]
) -> None:
    content = scan_segment(NAME, data)
    assert numbers(content) == kept
    assert reasons(content) == found


def test_zeros_that_end_in_a_newline_are_named() -> None:
    content = scan_segment(NAME, LINES[0] + bytes(20) + b"\n", is_open=True)
    assert reasons(content) == [(at(1), 21, "zeros where lines should be")]


def test_a_line_whose_newline_was_hit_is_kept_and_so_is_the_next() -> None:
    data = bytearray(GOOD)
    data[at(2) - 1] ^= 1
    content = scan_segment(NAME, bytes(data))
    assert numbers(content) == [0, 1, 2, 3]
    assert reasons(content) == [(at(2) - 1, 1, "the checksum does not fit")]


def test_a_line_that_holds_a_spool_line_as_its_body_is_one_line() -> None:
    inner = LINES[2][:-1]
    outer = encode_line(
        Delivery(
            webhook_id="evt_0",
            webhook_timestamp="1",
            webhook_signature="v1,",
            received_at="",
            body=b'{"a":%b,"b":%b}' % (inner, inner),
        ),
        n=0,
        seed=SEED,
    )
    content = scan_segment(NAME, sealed([outer]))
    assert [(line.start, line.end, line.n) for line in content.lines] == [(0, len(outer), 0)]
    assert content.damages == []


def test_every_flipped_bit_is_found_and_costs_one_line_at_most() -> None:
    for bit in range(len(GOOD) * 8):
        data = bytearray(GOOD)
        data[bit // 8] ^= 1 << bit % 8
        content = scan_segment(NAME, bytes(data))
        assert content.damages, f"bit {bit} was not found"
        others = [n for n in range(4) if not at(n) <= bit // 8 < at(n + 1)]
        assert [n for n in numbers(content) if n in others] == others, f"bit {bit}"


def test_every_truncation_is_found_and_costs_the_cut_lines_only() -> None:
    for size_bytes in range(len(GOOD)):
        content = scan_segment(NAME, GOOD[:size_bytes])
        assert content.damages, f"a cut at {size_bytes} was not found"
        assert numbers(content) == [n for n in range(4) if at(n + 1) <= size_bytes]


@pytest.mark.parametrize("filler", [bytes(64), make_line(7, seed=1)[:64], b"\n" * 64])
def test_every_overwritten_block_is_found_and_costs_the_lines_under_it(filler: bytes) -> None:
    for offset in range(len(GOOD) - 64):
        data = GOOD[:offset] + filler + GOOD[offset + 64 :]
        content = scan_segment(NAME, data)
        assert content.damages, f"a block at {offset} was not found"
        untouched = [n for n in range(4) if at(n + 1) <= offset or offset + 64 <= at(n)]
        assert [n for n in numbers(content) if n in untouched] == untouched


def make_spool(tmp_path: Path) -> Spool:
    spool = Spool(tmp_path / "spool")
    spool.create()
    return spool


def test_a_spool_is_made_for_its_owner_only(tmp_path: Path) -> None:
    spool = make_spool(tmp_path)
    assert {oct(path.stat().st_mode & 0o777) for path in spool.directories} == {"0o700"}


def test_making_a_spool_again_changes_nothing(tmp_path: Path) -> None:
    spool = make_spool(tmp_path)
    (spool.ready / "a.jsonl").touch()
    spool.create()
    assert spool.ready_segments() == [spool.ready / "a.jsonl"]


def test_a_spool_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "spool").symlink_to(tmp_path)
    with pytest.raises(SpoolError) as refused:
        Spool(tmp_path / "spool").create()
    assert str(refused.value) == (
        f"{tmp_path}/spool is not a directory but a link or a file; "
        "set spool.path (SPOOL__PATH) to a directory of its own"
    )


@pytest.mark.parametrize("part", ["", "open", "ready"])
def test_a_spool_that_others_can_write_to_is_refused(tmp_path: Path, part: str) -> None:
    path = make_spool(tmp_path).path / part
    path.chmod(0o770)
    with pytest.raises(SpoolError) as refused:
        Spool(tmp_path / "spool").create()
    assert str(refused.value) == (
        f"other users can write to {path} (mode 0770); run: chmod 700 {path}"
    )


@pytest.mark.parametrize("part", ["", "open", "counts"])
def test_a_directory_that_others_can_read_is_closed_to_them(tmp_path: Path, part: str) -> None:
    path = make_spool(tmp_path).path / part
    path.chmod(0o755)
    Spool(tmp_path / "spool").create()
    assert path.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("part", ["", "open", "ready"])
def test_a_spool_of_another_user_is_refused(
    tmp_path: Path, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_spool(tmp_path).path / part
    us = os.geteuid()
    lstat = Path.lstat

    def of_another(asked: Path) -> os.stat_result:
        found = list(lstat(asked))
        found[4] = us + 1 if asked == path else found[4]
        return os.stat_result(found)

    monkeypatch.setattr(Path, "lstat", of_another)
    with pytest.raises(SpoolError) as refused:
        Spool(tmp_path / "spool").create()
    assert str(refused.value) == (
        f"{path} belongs to user {us + 1}, and this process is user {us}; "
        f"run it as the owner, or run: chown {us} {path}"
    )


def as_nobody(script: str, spool: Path) -> str:
    """Run Python as a user without rights, who owns the spool; give what it printed."""
    for path in (spool, *spool.glob("*")):
        os.chown(path, NOBODY, NOBODY)
    done = subprocess.run(
        [sys.executable, "-c", f"{AS_NOBODY}{script}", str(spool)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        timeout=30,
        env={"PYTHONPATH": str(Path(__file__).parent.parent)},
    )
    return done.stdout


NOBODY = 65534
AS_NOBODY = f"""
import os, sys
from receiver.errors import SpoolError
from receiver.segment import Spool
spool = Spool(sys.argv[1])
os.chdir(spool.path.parent)
os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})
"""
TELL = """
try:
    spool.create()
except SpoolError as error:
    print(error, end="")
"""
only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")


@pytest.fixture
def shared() -> Iterator[Path]:
    """Give a directory below which others may look; pytest's own are closed to them."""
    with TemporaryDirectory() as name:
        Path(name).chmod(0o711)
        yield Path(name)


@only_root
def test_a_spool_that_we_may_not_write_to_is_refused(shared: Path) -> None:
    spool = make_spool(shared)
    spool.open.chmod(0o500)
    assert as_nobody(TELL, spool.path) == (
        f"this process may not make files in {spool.open}; run: chmod 700 {spool.open}"
    )


@only_root
def test_a_spool_in_a_directory_that_we_may_not_read_is_refused(shared: Path) -> None:
    spool = make_spool(shared)
    assert as_nobody(TELL, spool.path) == (
        f"cannot open {shared} to make the name spool durable: Permission denied; let this user "
        "read it, or set spool.path (SPOOL__PATH) to a directory in one that it can read"
    )


def test_a_spool_on_a_read_only_file_system_is_refused(tmp_path: Path) -> None:
    spool = make_spool(tmp_path)
    try_first(lambda: run("mount", "--bind", spool.path, spool.path))
    try:
        run("mount", "-o", "remount,bind,ro", spool.path)
        with pytest.raises(SpoolError) as refused:
            spool.create()
    finally:
        run("umount", spool.path)
    assert str(refused.value) == (
        f"{spool.path} is on a file system that is mounted read-only; mount it writable, or set "
        "spool.path (SPOOL__PATH) to a directory on another local disk"
    )


def test_a_spool_without_a_parent_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpoolError) as refused:
        Spool(tmp_path / "none" / "spool").create()
    assert str(refused.value) == (
        f"cannot create the directory {tmp_path}/none/spool: No such file or directory; "
        "create its parent, or set spool.path (SPOOL__PATH) to a directory on a local disk"
    )


def test_segments_are_listed_by_name_and_other_files_are_not(tmp_path: Path) -> None:
    spool = make_spool(tmp_path)
    for name in (b"b.jsonl", b"a.jsonl", b"c.tmp", b".jsonl", b"\xc3\xa9.jsonl", b"\xff.jsonl"):
        (spool.ready / os.fsdecode(name)).touch()
    assert spool.ready_segments() == [spool.ready / "a.jsonl", spool.ready / "b.jsonl"]


def test_a_spool_that_does_not_exist_has_no_segments(tmp_path: Path) -> None:
    assert Spool(tmp_path / "none").ready_segments() == []


def test_reading_a_file_takes_its_name_as_seed(tmp_path: Path) -> None:
    path = tmp_path / f"{NAME}.jsonl"
    path.write_bytes(GOOD)
    assert segment_name(path) == NAME
    assert numbers(read_segment(path)) == [0, 1, 2, 3]
    renamed = path.rename(tmp_path / "another.jsonl")
    assert read_segment(renamed).lines == []


def test_loaded_segments_move_and_moving_again_changes_nothing(tmp_path: Path) -> None:
    spool = make_spool(tmp_path)
    paths = [spool.ready / "a.jsonl", spool.ready / "b.jsonl"]
    for path in paths:
        path.touch()
    mark_loaded(paths)
    mark_loaded(paths)
    assert spool.ready_segments() == []
    assert [path.name for path in spool.loaded_segments()] == ["a.jsonl", "b.jsonl"]


def test_quarantine_keeps_bytes_and_reason_and_doing_it_again_changes_nothing(
    tmp_path: Path,
) -> None:
    spool = make_spool(tmp_path)
    damage = Damage(offset=70, size_bytes=3, reason="the checksum does not fit")
    for _ in range(2):
        path = quarantine(spool, NAME, damage, b"\0\n\xff")
        assert path.read_bytes() == b"\0\n\xff"
    assert json.loads(path.with_suffix(".json").read_text()) == {
        "segment": NAME,
        "offset": 70,
        "size_bytes": 3,
        "reason": "the checksum does not fit",
    }
    assert sorted(file.name for file in spool.quarantine.iterdir()) == [
        f"{NAME}-000000000070.bin",
        f"{NAME}-000000000070.json",
    ]
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_second_load_is_told_who_holds_the_lock(tmp_path: Path) -> None:
    spool = make_spool(tmp_path)
    with load_lock(spool), pytest.raises(BusyError) as busy, load_lock(spool):
        pass
    assert str(busy.value) == (
        f"another load is running (process {os.getpid()} holds {spool.path}/load.lock); "
        "wait until it has ended, then load again"
    )


def test_the_lock_is_free_after_a_load(tmp_path: Path) -> None:
    spool = make_spool(tmp_path)
    for _ in range(2):
        with load_lock(spool):
            pass
