"""Show how far a run is: a bar on a terminal, plain lines elsewhere, nothing in tests."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, NoReturn, Protocol, TextIO

from pipelines.text_table import show_count

if TYPE_CHECKING:
    from tqdm import tqdm


class Progress(Protocol):
    """What a run tells while it works."""

    def start(self, segment_count: int) -> None: ...
    def say(self, message: str) -> None: ...
    def advance(self, segment_count: int) -> None: ...
    def close(self) -> None: ...


class Silent:
    """Tell nobody."""

    def start(self, segment_count: int) -> None: ...
    def say(self, message: str) -> None: ...
    def advance(self, segment_count: int) -> None: ...
    def close(self) -> None: ...


class Lines:
    """Write one plain line a step, as logs want it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._total = self._done = 0

    def start(self, segment_count: int) -> None:
        self._total = segment_count
        self.say(f"{show_count(segment_count, 'segment')} to load")

    def say(self, message: str) -> None:
        print(message, file=self._stream, flush=True)

    def advance(self, segment_count: int) -> None:
        self._done += segment_count
        self.say(f"{self._done} of {self._total} segments loaded")

    def close(self) -> None: ...


class Bar:
    """Draw a bar of segments, with the step that is under way behind it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._bar: tqdm[NoReturn] | None = None

    def start(self, segment_count: int) -> None:
        from tqdm import tqdm  # noqa: PLC0415 not wanted by a run with nothing to do

        self._bar = tqdm(
            total=segment_count,
            unit=" segments",
            file=self._stream,
            dynamic_ncols=True,
            leave=False,
        )

    def say(self, message: str) -> None:
        if self._bar is not None:
            self._bar.set_postfix_str(message)

    def advance(self, segment_count: int) -> None:
        if self._bar is not None:
            self._bar.update(segment_count)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def make_progress(stream: TextIO | None = None) -> Progress:
    """Choose what suits the stream (standard error if none is given)."""
    stream = stream or sys.stderr
    return Bar(stream) if stream.isatty() else Lines(stream)
