"""Read a signed body as JSON, exactly, and write parts of it as text that every column takes.

A number that a 64-bit float or Python's reader cannot hold is read as its text, and of a key that
appears twice the later one is kept under `key_2`: nothing that a body says is dropped.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping

import orjson

from pipelines.json_types import Json

# Python refuses to read longer numbers, and so would every destination.
MAX_DIGITS = 4300
# Half of what Python's JSON writer can go down before it gives up.
MAX_NESTING = 500
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
# After an even number of backslashes; after an odd one the text says `\\` and then `u0000`.
_ESCAPED_NUL = re.compile(r"(?<!\\)((?:\\\\)*)\\u0000")


class NotLoadableError(Exception):
    """A signed body that cannot become rows; the message is the reason to report."""


def read_body(body: bytes) -> dict[str, Json]:
    """Read a body as a JSON object, exactly; raises `NotLoadableError`.

    Numbers that a 64-bit float or Python's reader cannot hold come back as their text,
    and of a key that appears twice the later one is kept under `key_2`.
    """
    try:
        document: Json = DECODER.decode(body.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise NotLoadableError(f"not UTF-8 at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise NotLoadableError(f"not JSON: {error.msg} at character {error.pos}") from error
    except RecursionError as error:
        raise NotLoadableError(f"nested more than {MAX_NESTING} deep") from error
    if not isinstance(document, dict):
        raise NotLoadableError(f"not a JSON object but {_KIND_NAMES[type(document)]}")
    if may_be_too_deep(body) and _nesting(document) > MAX_NESTING:
        raise NotLoadableError(f"nested more than {MAX_NESTING} deep")
    return document


def is_strict_json(body: bytes) -> bool:
    """Tell whether a body is JSON without what only Python's reader takes, such as NaN."""
    try:
        orjson.loads(body)
    except orjson.JSONDecodeError:
        return False
    return True


def may_be_too_deep(text: bytes) -> bool:
    """Tell whether JSON has so many brackets that it could be nested too deeply."""
    return text.count(b"{") + text.count(b"[") > MAX_NESTING


def _nesting(document: Json) -> int:
    depth = 0
    level: list[Json] = [document]
    while level:
        inner: list[Json] = []
        for node in level:
            if isinstance(node, dict):
                inner += node.values()
            elif isinstance(node, list):
                inner += node
        level = inner
        depth += 1
    return depth - 1


_KIND_NAMES = {
    type(None): "null",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    str: "a string",
    list: "an array",
}


def _object(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    document = dict(pairs)
    if len(document) == len(pairs):
        return document
    document = {}
    for key, value in pairs:
        document[free_name(key, document)] = value
    return document


def free_name(key: str, taken: Mapping[str, Json]) -> str:
    name, count = key, 1
    while name in taken:
        count += 1
        name = f"{key}_{count}"
    return name


def _integer(digits: str) -> int | str:
    return int(digits) if len(digits) <= MAX_DIGITS else digits


def _float(text: str) -> float | str:
    value = float(text)
    return value if math.isfinite(value) else text


DECODER = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_integer, parse_float=_float, parse_constant=str
)


def storable(text: str) -> str:
    """Replace what no text column takes: NUL, and halves of surrogate pairs."""
    if text.isascii() and "\0" not in text:
        return text  # much the most, and ten times faster to tell
    return _UNSTORABLE.sub("\ufffd", text)


def json_text(value: Json) -> str:
    """Write a value as JSON text that every destination's JSON type takes."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return _ESCAPED_NUL.sub("\\1\ufffd", storable(text))
