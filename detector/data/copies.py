"""Images that occur twice: listed by two entries of a split, or in the training and the validation split alike."""

import filecmp
import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from detector.data.images.files import FileStatus
from detector.data.samples import Dataset

_SAMPLE_BYTES = 4096


@dataclass(frozen=True)
class SharedImage:
    """A validation image that is a training image too."""

    validation: Path
    training: Path
    same_file: bool
    """False: another file with the same content."""


def repeated_files(dataset: Dataset) -> list[Path]:
    """The files that more than one entry of a split names, in order."""
    seen: set[str] = set()
    repeated: dict[str, Path] = {}
    for path in dataset.image_paths:
        name = os.path.normpath(path)
        if name in seen:
            repeated.setdefault(name, path)
        seen.add(name)
    return list(repeated.values())


def shared_images(train: Dataset, val: Dataset, status: FileStatus | None = None) -> list[SharedImage]:
    """The validation images that are training images too, by file or by content, in the order of the validation split.

    Content is only read of files whose size in bytes occurs in both splits: 4 KiB from the middle, and the whole of
    files that agree there. Files that cannot be read are left out; the image check names them.
    """
    status = status or FileStatus()
    by_size: dict[int, list[Path]] = defaultdict(list)
    for path in train.image_paths:
        size = _size(path, status)
        if size is not None:
            by_size[size].append(path)
    samples: dict[Path, bytes | None] = {}
    shared = []
    for path in val.image_paths:
        candidates = by_size.get(_size(path, status) or 0, [])
        match = _same_file(path, candidates, status) or _same_content(path, candidates, samples)
        if match is not None:
            shared.append(SharedImage(path, *match))
    return shared


def _size(path: Path, status: FileStatus) -> int | None:
    try:
        return status(path).st_size
    except (OSError, ValueError):
        return None


def _same_file(path: Path, candidates: Iterable[Path], status: FileStatus) -> tuple[Path, bool] | None:
    own = status(path) if candidates else None
    for candidate in candidates:
        other = status(candidate)
        if own is not None and (own.st_dev, own.st_ino) == (other.st_dev, other.st_ino):
            return candidate, True
    return None


def _same_content(
    path: Path, candidates: Iterable[Path], samples: dict[Path, bytes | None]
) -> tuple[Path, bool] | None:
    for candidate in candidates:
        for file in (path, candidate):
            if file not in samples:
                samples[file] = _sample(file)
        try:
            alike = samples[path] is not None and samples[path] == samples[candidate]
            if alike and filecmp.cmp(path, candidate, shallow=False):
                return candidate, False
        except OSError:
            continue
    return None


def _sample(path: Path) -> bytes | None:
    """Bytes from the middle of a file, where images differ even if one camera wrote their headers."""
    try:
        with path.open("rb") as file:
            middle = file.seek(0, os.SEEK_END) // 2
            file.seek(max(middle - _SAMPLE_BYTES // 2, 0))
            return file.read(_SAMPLE_BYTES)
    except OSError:
        return None
