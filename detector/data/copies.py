"""Images that occur twice: listed by two entries of a split, or in the training and the validation split alike."""

import hashlib
import os
import stat
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
    files that agree there, each once, so that the time grows with the number of files. Files that cannot be read are
    left out; the image check names them.
    """
    status = status or FileStatus()
    index = _TrainingFiles(train.image_paths, status)
    shared = []
    for path in val.image_paths:
        match = index.find(path)
        if match is not None:
            shared.append(SharedImage(path, *match))
    return shared


class _TrainingFiles:
    """Index of the training images by file and by content; content is read when it is first asked for."""

    def __init__(self, paths: Iterable[Path], status: FileStatus) -> None:
        self._status = status
        self._by_file: dict[tuple[int, int], Path] = {}
        self._unread: dict[int, list[Path]] = defaultdict(list)
        """Files by size whose samples have not been read."""
        self._unhashed: dict[tuple[int, bytes], list[Path]] = defaultdict(list)
        """Files by size and sample whose whole content has not been read."""
        self._sampled: set[tuple[int, bytes]] = set()
        """Sizes and samples of the files that were read."""
        self._by_content: dict[tuple[int, bytes], Path] = {}
        for path in paths:
            found = self._regular(path)
            if found is not None:
                self._by_file.setdefault((found.st_dev, found.st_ino), path)
                self._unread[found.st_size].append(path)
        self._sizes = frozenset(self._unread)

    def find(self, path: Path) -> tuple[Path, bool] | None:
        """The first training image that is this file (True) or has its content (False); None without one."""
        found = self._regular(path)
        if found is None or found.st_size not in self._sizes:
            return None
        same_file = self._by_file.get((found.st_dev, found.st_ino))
        if same_file is not None:
            return same_file, True
        size = found.st_size
        for candidate in self._unread.pop(size, ()):
            if (sample := _sample(candidate)) is not None:
                self._unhashed[size, sample].append(candidate)
                self._sampled.add((size, sample))
        own = _sample(path)
        if own is None or (size, own) not in self._sampled:
            return None
        for candidate in self._unhashed.pop((size, own), ()):
            if (content := _content(candidate)) is not None:
                self._by_content.setdefault((size, content), candidate)
        whole = _content(path)
        copy = None if whole is None else self._by_content.get((size, whole))
        return None if copy is None else (copy, False)

    def _regular(self, path: Path) -> os.stat_result | None:
        """Status of a regular file; None for what is missing or something else."""
        try:
            found = self._status(path)
        except (OSError, ValueError):
            return None
        return found if stat.S_ISREG(found.st_mode) else None


def _sample(path: Path) -> bytes | None:
    """Digest of bytes from the middle of a file, where images differ even if one camera wrote their headers."""
    try:
        with path.open("rb") as file:
            middle = file.seek(0, os.SEEK_END) // 2
            file.seek(max(middle - _SAMPLE_BYTES // 2, 0))
            return hashlib.blake2b(file.read(_SAMPLE_BYTES), digest_size=16).digest()
    except OSError:
        return None


def _content(path: Path) -> bytes | None:
    """Digest of a whole file."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError:
        return None
