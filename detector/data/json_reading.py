"""Reading an untrusted JSON file: whole, strict, bounded, and with errors that say where it is wrong."""

import json
import re
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from detector.data.invalid_entries import first_ten, short_repr
from detector.errors import DatasetError
from detector.files import read_regular

MAX_BYTES = 4 * 2**30
"""Largest file read: nine times COCO's largest annotation file (450 MB); parsing takes several times this in memory."""

_CONSTANT_OR_STRING = re.compile(r'"(?:[^"\\]|\\.)*"|(-?Infinity|NaN)', re.DOTALL)


class _NonFiniteLiteralError(ValueError):
    """NaN or an infinity written as a bare word, which Python's parser takes but JSON does not have."""


def pairs_hook(repeated_keys: "Counter[str]", ignored_keys: Collection[str] = ()) -> Callable[[Any], dict[str, Any]]:
    """`object_pairs_hook` for `json.loads` that counts keys which occur twice in one object; the last value stays."""

    def build(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entry = dict(pairs)
        if len(entry) < len(pairs):
            repeated_keys.update(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        for key in ignored_keys:
            entry.pop(key, None)
        return entry

    return build


def describe_repeated(repeated_keys: "Counter[str]", file: Path) -> list[str]:
    """One sentence where keys occur twice in an object of a file; empty for none."""
    if not repeated_keys:
        return []
    named = first_ten(repeated_keys.most_common(), lambda item: f"{short_repr(item[0])} in {item[1]:,} objects")
    return [f"{file.name} has a key twice in one object, and the last value counts: {named}"]


def read_json_object(
    path: Path, ignored_keys: Collection[str] = (), repeated_keys: "Counter[str] | None" = None
) -> dict[str, Any]:
    """The JSON object that a file holds, as UTF-8 with or without a byte order mark.

    Args:
        repeated_keys: counts the keys that occur twice in one object, which JSON leaves undefined.
        ignored_keys: members dropped from every object as soon as it is read. COCO's polygons are nine tenths of its
            files: without them memory stays at a third.

    Raises DatasetError, with the position where there is one, for a file that is missing, not a regular file, larger
    than `MAX_BYTES`, not UTF-8, cut off or otherwise not JSON, nested too deeply, or not an object at the top, and for
    NaN literals.
    """
    text = _read_text(path)
    hook = pairs_hook(Counter() if repeated_keys is None else repeated_keys, ignored_keys)
    try:
        content = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=hook)
    except _NonFiniteLiteralError as error:
        raise DatasetError(
            f"holds the literal {error} {_position_of_constant(text)}, which is not JSON",
            file=path,
            remedy="Remove the entry or give it a number",
        ) from error
    except json.JSONDecodeError as error:
        raise DatasetError(
            f"is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}",
            file=path,
            remedy="It may be cut off: download or export it again",
        ) from error
    except RecursionError as error:
        raise DatasetError("is nested too deeply for an annotation file", file=path) from error
    except ValueError as error:
        # An integer of thousands of digits: Python refuses to convert it.
        raise DatasetError(f"holds a number that cannot be read ({error})", file=path) from error
    if not isinstance(content, dict):
        raise DatasetError(
            f"must be a JSON object at the top, is a {type(content).__name__}",
            file=path,
            remedy="A COCO file is an object with 'images', 'annotations' and 'categories'",
        )
    return content


def _read_text(path: Path) -> str:
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise DatasetError(f"is larger than {MAX_BYTES // 2**30} GiB", file=path, value=f"{size} bytes")
        return read_regular(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DatasetError(f"is not UTF-8 text ({error.reason} at byte {error.start})", file=path) from error
    except OSError as error:
        raise DatasetError(f"cannot be read ({error.strerror or error})", file=path) from error


def _refuse_constant(literal: str) -> None:
    raise _NonFiniteLiteralError(literal)


def _position_of_constant(text: str) -> str:
    # json tells parse_constant no position; strings are skipped, for "NaN" may be a name.
    start = next(match.start() for match in _CONSTANT_OR_STRING.finditer(text) if match.group(1))
    line = text.count("\n", 0, start) + 1
    return f"at line {line}, column {start - text.rfind(chr(10), 0, start)}"
