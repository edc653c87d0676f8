r"""Write free-form values as JSON text within a body, so that the fast parser can read them.

pyarrow cannot read an object as text. Where a key that is declared as JSON holds anything but
null, its value is replaced by a string that holds the same text as the odd way writes:
`"props":{"a":1}` becomes `"props":"{\"a\":1}"`. Only the parser knows at which place a key stands;
it has to look whether that is the declared one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator

from pipelines import schema
from pipelines.bodies import DECODER, json_text, may_be_too_deep
from pipelines.schema import Kind, Node


def _free_form_keys(node: Node) -> Iterator[str]:
    if isinstance(node, list):
        yield from _free_form_keys(node[0])
    elif isinstance(node, dict):
        for key, child in node.items():
            if child is Kind.JSON:
                yield key
            yield from _free_form_keys(child)


FREE_FORM_KEYS = frozenset(_free_form_keys(schema.EVENT))
_QUOTED_KEYS = [f'"{key}"'.encode() for key in FREE_FORM_KEYS]
_COLON = re.compile(rb"[ \t]*:[ \t]*")


def quote_free_form(body: bytes) -> bytes:
    """Replace the free-form values of a body on one line; what is not JSON stays as it is."""
    starts = sorted(start for key in _QUOTED_KEYS for start in _find_values(body, key))
    pieces: list[bytes] = []
    done = 0
    try:
        for start, end, text in _quote(body, starts):
            pieces += (body[done:start], text)
            done = end
    except (ValueError, RecursionError):
        return body
    return b"".join([*pieces, body[done:]]) if pieces else body


def _find_values(body: bytes, quoted_key: bytes) -> Iterator[int]:
    """Find where the values of a key start, those that are null left out."""
    end = 0
    while (start := body.find(quoted_key, end)) >= 0:
        end = start + len(quoted_key)
        if body.startswith(b":null", end):
            continue  # much the most frequent
        colon = _COLON.match(body, end)
        # Without a colon it is a value itself; after a backslash, a part of one.
        if colon and body[start - 1 : start] != b"\\" and not body.startswith(b"null", colon.end()):
            yield colon.end()


def _quote(body: bytes, starts: Iterable[int]) -> Iterator[tuple[int, int, bytes]]:
    """Give start and end of each value, and the string that holds it. Raises ValueError."""
    text = ""
    byte_count = char_count = 0  # up to the same place
    end = 0
    for start in starts:
        if start < end:
            continue  # within a value that is replaced already
        if body.startswith(b"{}", start):
            end = start + 2
            yield start, end, b'"{}"'
            continue
        text = text or body.decode("utf-8")
        char_count += len(body[byte_count:start].decode("utf-8"))
        byte_count = start
        value, char_end = DECODER.raw_decode(text, char_count)
        raw = text[char_count:char_end].encode()
        if may_be_too_deep(raw):
            raise ValueError  # the odd way tells how deep an event may be
        end = start + len(raw)
        yield start, end, json.dumps(json_text(value), ensure_ascii=False).encode()
