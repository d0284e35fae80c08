"""Image files of a folder, found in one listing; names from an annotation file cannot lead out of it."""

import os
from collections.abc import Sequence
from pathlib import Path, PurePath

from detector.data.invalid_entries import first_ten
from detector.errors import DatasetError


def list_files(folder: Path) -> set[str]:
    """Names of the files in a folder, links to files included; not of its sub-folders' files.

    One listing instead of a stat for each expected file: 118,000 of those take minutes on network storage.
    """
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_file()}
    except OSError as error:
        raise DatasetError(f"the folder cannot be listed ({error.strerror or error})", file=folder) from error


class FileStatus:
    """`os.stat` of files that asks each file once: it takes minutes for 118,000 files on network storage."""

    def __init__(self) -> None:
        self._known: dict[Path, os.stat_result] = {}

    def __call__(self, path: Path) -> os.stat_result:
        """Status of a file; OSError for a missing one, ValueError for a name that no file can have."""
        if path not in self._known:
            self._known[path] = path.stat()
        return self._known[path]


def find_images(folder: Path, names: Sequence[str], source: Path) -> list[Path]:
    """Absolute paths of the named files in `folder`, whose sub-folders a name may point into.

    Raises DatasetError, listing the first ten, for names that would lead out of the folder (`source` is the file that
    has them), and for files that are not there.
    """
    outside = [name for name in names if not _stays_inside(name)]
    if outside:
        raise DatasetError(
            f"{len(outside)} file names are empty, absolute or lead out of the images folder: {first_ten(outside)}",
            file=source,
            field="file_name",
            remedy="Write them relative to the images folder",
        )
    folder = Path(os.path.abspath(folder))
    present = {"": list_files(folder)}
    places = [os.path.split(os.path.normpath(name)) for name in names]
    for parent in {parent for parent, _ in places} - {""}:
        try:
            present[parent] = list_files(folder / parent)
        except (DatasetError, ValueError):
            # No such sub-folder, or a name that no file can have (a null, a lone surrogate).
            present[parent] = set()
    missing = [name for name, (parent, file) in zip(names, places, strict=True) if file not in present[parent]]
    if missing:
        raise DatasetError(
            f"{len(missing)} of the {len(names)} images named in {source} are missing: {first_ten(missing)}",
            file=folder,
            remedy="Name the folder that holds them, or remove their entries",
        )
    return [folder / name for name in names]


def _stays_inside(name: str) -> bool:
    path = PurePath(name)
    return bool(path.name) and not path.is_absolute() and not path.drive and ".." not in path.parts
