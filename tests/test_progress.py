"""The progress: a bar where somebody looks, plain lines where a log is written."""

from __future__ import annotations

import io

import pytest

from pipelines.progress import Bar, Lines, Progress, Silent, make_progress


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _run(progress: Progress) -> None:
    progress.start(3)
    progress.say("loading 7 rows")
    progress.advance(2)
    progress.advance(1)
    progress.close()


def test_a_log_gets_one_plain_line_a_step() -> None:
    stream = io.StringIO()
    _run(make_progress(stream))
    assert stream.getvalue() == (
        "3 segments to load\nloading 7 rows\n2 of 3 segments loaded\n3 of 3 segments loaded\n"
    )


def test_one_segment_is_told_as_one() -> None:
    stream = io.StringIO()
    make_progress(stream).start(1)
    assert stream.getvalue() == "1 segment to load\n"


def test_a_terminal_gets_a_bar_that_leaves_nothing_behind() -> None:
    stream = _Terminal()
    progress = make_progress(stream)
    assert isinstance(progress, Bar)
    _run(progress)
    shown = stream.getvalue()
    assert "0/3" in shown
    assert "loading 7 rows" in shown
    assert shown.endswith("\r")
    assert "\n" not in shown


def test_without_a_stream_it_is_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    progress = make_progress()
    assert isinstance(progress, Lines)
    _run(progress)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("3 segments to load\n")


def test_silence_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    _run(Silent())
    assert capsys.readouterr() == ("", "")
