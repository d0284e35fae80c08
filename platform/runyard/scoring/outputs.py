"""Check of a file that a command is to write, before any work is done for it."""

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from detector.errors import InputError

_HEAD_BYTES = 4096
_TEXT = rb'"(?:[^"\\]|\\.)*"'
_NUMBER = rb"-?[0-9][-+.eE0-9]*"


@dataclass(frozen=True)
class OutputKind:
    """A kind of file that this program writes, as it is recognised."""

    name: str
    begins: re.Pattern[bytes]
    """Matches the first bytes."""
    ends: bytes

    def describes(self, path: Path) -> bool:
        """True for a file that begins and ends as this program writes it; OSError where it cannot be read."""
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
            file.seek(max(file.seek(0, os.SEEK_END) - len(self.ends), 0))
            return self.begins.match(head) is not None and file.read() == self.ends


_ROW = rb'\{"image_id": (?:%b|%b), "category_id": %b, "bbox": \[(?:%b, ){3}%b\], "score": %b\}' % (
    _NUMBER,
    _TEXT,
    *[_NUMBER] * 4,
)

RESULT_FILE = OutputKind("result file", re.compile(rb"\[(?:\]\n\Z|%b(?:, \{|\]\n))" % _ROW, re.DOTALL), b"]\n")
"""Plain COCO results, as `runyard detect` writes them: rows of four members."""
REPORT = OutputKind("report", re.compile(rb'\{\n  "protocol": "(?:coco|voc07|voc12)",\n  "settings": \{\n'), b"\n}\n")
"""The numbers of `runyard evaluate --json`."""


def check_output(path: Path, option: str, kind: OutputKind, *inputs: Path) -> Path:
    """The path to write, with '~' expanded; InputError where it cannot or must not be written.

    A symbolic link is judged by its target, which is written. An existing file may be replaced if this program wrote it
    as a result of the same kind, and it is not an input. Nothing is created.

    Args:
        option: name of the command's option, for the error.
        inputs: files and folders of the user that the command reads.
    """
    remedy = f"Choose another {option}"
    try:
        path = path.expanduser()
        target = path.resolve()
        found = target.stat() if target.exists() else None
        if found is not None and stat.S_ISDIR(found.st_mode):
            raise InputError("expected a file, found a folder", field=option, file=path, remedy=remedy)
        if found is not None and not stat.S_ISREG(found.st_mode):
            raise InputError("expected a regular file, found a pipe or device", field=option, file=path, remedy=remedy)
        for source in inputs:
            if target == source.resolve() or (found is not None and source.exists() and target.samefile(source)):
                problem = "is an input of this command and would be overwritten"
                raise InputError(problem, field=option, file=path, remedy=remedy)
        if found is not None and not kind.describes(target):
            problem = f"expected a new file or an earlier {kind.name} of Runyard, found another file"
            raise InputError(problem, field=option, file=path, remedy=remedy)
        folder = next(parent for parent in target.parents if parent.exists())
        if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
            problem = f"cannot be written: {folder} is not a folder to write in"
            raise InputError(problem, field=option, file=path, remedy=remedy)
    except (OSError, RuntimeError) as error:  # RuntimeError: an unknown user's '~', a loop of links
        problem = f"cannot be written ({getattr(error, 'strerror', None) or error})"
        raise InputError(problem, field=option, file=path, remedy=remedy) from error
    return path
