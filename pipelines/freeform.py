r"""Write free-form values as JSON text within a body, so that the fast parser can read them.

pyarrow cannot read an object as text. Where a key that is declared as JSON holds anything but
null, its value is replaced by a string that holds the same text as the odd way writes:
`"props":{"a":1}` becomes `"props":"{\"a\":1}"`. Only the parser knows at which place a key stands;
it has to look whether that is the declared one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from pipelines import schema
from pipelines.bodies import DECODER, MAX_NESTING, json_text
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
    pieces: list[bytes] = []
    done = 0
    for start in sorted(start for key in _QUOTED_KEYS for start in _find_values(body, key)):
        if start < done:
            continue  # within a value that is replaced already
        try:
            end, text = _to_text(body, start)
        except (ValueError, RecursionError):
            continue
        pieces += (body[done:start], text)
        done = end
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


def _to_text(body: bytes, start: int) -> tuple[int, bytes]:
    """Give the end of the value that starts here, and the string that holds it."""
    if body.startswith(b"{}", start):
        return start + 2, b'"{}"'
    rest = body[start:].decode("utf-8")
    value, length = DECODER.raw_decode(rest)
    raw = rest[:length]
    if raw.count("{") + raw.count("[") > MAX_NESTING:
        raise ValueError  # the odd way tells how deep an event may be
    return start + len(raw.encode()), json.dumps(json_text(value), ensure_ascii=False).encode()
