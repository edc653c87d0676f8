"""A log line is one line whatever it holds; what strangers chose is short, what we say is whole."""

from __future__ import annotations

import logging

import pytest

from receiver.log import log_event


def logged(caplog: pytest.LogCaptureFixture, **fields: object) -> str:
    with caplog.at_level(logging.INFO, logger="receiver"):
        log_event(logging.INFO, "tried", **fields)
    [message] = caplog.messages
    return message


def test_an_id_is_cut_and_a_message_of_ours_says_what_to_do_to_its_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    message = logged(caplog, id="i" * 65, error=ValueError("e" * 499 + "."), detail="d" * 501)
    assert message == f"event=tried id='{'i' * 64}' error='{'e' * 499}.' detail='{'d' * 500}'"


def test_no_text_can_end_a_line_or_look_like_another(caplog: pytest.LogCaptureFixture) -> None:
    assert logged(caplog, error="a\nb\x1b[31m\u2028\u0430' level=ERROR") == (
        'event=tried error="a\\nb\\x1b[31m\\u2028\\u0430\' level=ERROR"'
    )


def test_numbers_stand_as_they_are(caplog: pytest.LogCaptureFixture) -> None:
    assert logged(caplog, lines=3, seconds=1.23456, done=True) == (
        "event=tried lines=3 seconds=1.235 done=True"
    )
