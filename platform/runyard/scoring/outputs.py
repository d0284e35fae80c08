"""Check of a file that a command is to write, before any work is done for it."""

import os
from pathlib import Path

from detector.errors import InputError


def check_output(path: Path, option: str, *inputs: Path) -> None:
    """Refuse a file that cannot or must not be written; a symbolic link is judged by its target, which is written.

    Args:
        option: name of the command's option, for the error.
        inputs: files of the user that the command reads.

    Raises InputError for folders, devices and pipes, for inputs of the command, and for places without permission.
    """
    if path.is_dir():
        raise InputError("is a folder, a file is needed", field=option, file=path)
    if path.exists() and not path.is_file():
        raise InputError("is not a regular file and would be replaced", field=option, file=path)
    target = path.resolve()
    for source in inputs:
        if target == source.resolve() or (path.exists() and source.exists() and os.path.samefile(path, source)):
            raise InputError("is an input of this command and would be overwritten", field=option, file=path)
    folder = next(parent for parent in target.parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"cannot be written: {folder} is not a folder to write in", field=option, file=path)
