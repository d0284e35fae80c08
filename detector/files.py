"""The one way to write files, whole or not at all, and to read a user's. JSON is strict. Imports no torch."""

import errno
import json
import math
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal
from uuid import uuid4

NonFinite = Literal["null", "error", "text"]
"""What becomes of NaN and infinities, which JSON lacks: null, a ValueError, or the text that `float` reads back."""


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A stream whose content takes the name `path` when the block ends: written to a temporary file, synced, renamed.

    Missing folders are created. A reader, or a restart after a crash, finds the old content or the new. If the block or
    the writing fails (disk full, quota), the temporary file is removed and the error passed on. A symbolic link is
    followed, not replaced; FileExistsError if `path` is a folder, device or pipe.
    """
    if path.is_symlink():
        path = path.resolve()
    if path.exists() and not path.is_file():
        raise FileExistsError(errno.EEXIST, "not a regular file", str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{uuid4().hex}.partial"
    try:
        with temporary.open("xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync(path.parent)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file as `atomic_file` does; OSError on a full disk or without permission."""
    with atomic_file(path) as stream:
        stream.write(content)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` for text, as UTF-8."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: object, *, indent: int | None = None, non_finite: NonFinite = "null") -> None:
    """`write_bytes` for plain values as strict JSON in UTF-8, see `encode_json`; ends in a newline."""
    write_bytes(path, encode_json(value, indent=indent, non_finite=non_finite) + b"\n")


def encode_json(
    value: object,
    *,
    indent: int | None = None,
    non_finite: NonFinite = "null",
    default: Callable[[Any], Any] | None = None,
) -> bytes:
    """Strict JSON in UTF-8, one line unless indented; mappings and tuples become objects and lists.

    Bytes of a file name that are not text (lone surrogates) become JSON escapes. `default` converts values that JSON
    does not know; without it they raise TypeError.
    """

    def convert(item: Any) -> Any:
        if isinstance(item, Mapping):
            return dict(item)
        if default is None:
            raise TypeError(f"expected a plain value, found {type(item).__name__}")
        return default(item)

    try:
        # In nearly all cases the C encoder takes the value as it is: that matters for half a million detections.
        text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False, default=convert)
    except (ValueError, TypeError):
        if non_finite == "error":
            raise
        plain = _plain(value, non_finite)
        text = json.dumps(plain, indent=indent, ensure_ascii=False, allow_nan=False, default=convert)
    return text.encode("utf-8", "backslashreplace")


def read_regular(path: Path) -> bytes:
    """The content of a file that a user names; OSError where it cannot be read, or is a pipe, socket or device.

    A pipe without a writer would be waited for without end, and one with a writer can be read only once.
    """
    mode = path.stat().st_mode
    kinds = {"pipe": stat.S_ISFIFO, "socket": stat.S_ISSOCK, "device": lambda m: stat.S_ISCHR(m) or stat.S_ISBLK(m)}
    for kind, is_kind in kinds.items():
        if is_kind(mode):
            problem = f"expected a regular file, found a {kind}: write its content to a file first"
            raise OSError(errno.EINVAL, problem, str(path))
    return path.read_bytes()


def sync(path: Path) -> None:
    """Make a file's content, or the renames and new files in a folder, survive a power loss."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _plain(value: object, non_finite: NonFinite) -> object:
    """`value` with JSON's own types and finite numbers."""
    if isinstance(value, float) and not math.isfinite(value):
        return None if non_finite == "null" else str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item, non_finite) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, non_finite) for item in value]
    return value
