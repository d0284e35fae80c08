"""Image files that were verified before, so that the next start need not decode them again.

One text file for each split and storage folder: a checksum, then a key for each verified image. The key covers all that
says that the image is still the same: path, size in bytes, time of the last change, annotated size, and the decoder's
version. So a file that was mended is looked at alone, not its data set; a bit that flips on the disk, and changes
neither size nor time, goes unseen until training meets it. Images that were found unusable are not kept: there are few,
and a permission or a mount may have changed since. Keys of files that are gone do no harm.
"""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

import PIL

from detector.data.images.files import FileStatus
from detector.data.samples import Dataset
from detector.files import write_text
from runyard.runs.names import safe_name

_FORM = "runyard verified images 1"
"""With another way of checking, raise the number: earlier verdicts then count for nothing."""
_KEY_BYTES = 12


def memory_of(dataset: Dataset, storage: Path) -> Path:
    """File that keeps the verdicts on a split's images."""
    folder = os.fsencode(dataset.image_paths[0].parent) if len(dataset) else b""
    name = f"{safe_name(dataset.name)}-{hashlib.sha256(folder).hexdigest()[:12]}"
    return storage / ".verified-images" / name


def image_keys(dataset: Dataset, images: Iterable[int], status: FileStatus | None = None) -> dict[int, str]:
    """Position -> key, without the files that cannot be looked up."""
    status = status or FileStatus()
    keys = {}
    for image in images:
        path = dataset.image_paths[image]
        try:
            found = status(path)
        except (OSError, ValueError):
            continue
        height, width = dataset.image_sizes[image].tolist()
        facts = f"{_FORM} {PIL.__version__} {found.st_size} {found.st_mtime_ns} {width} {height} "
        keys[image] = hashlib.blake2b(facts.encode() + os.fsencode(path), digest_size=_KEY_BYTES).hexdigest()
    return keys


def recall(memory: Path) -> set[str]:
    """The keys that are kept; none where the file is missing, damaged or something else."""
    try:
        first, _, rest = memory.read_text(encoding="ascii").partition("\n")
    except (OSError, ValueError):
        return set()
    return set(rest.split()) if first == _first_line(rest) else set()


def remember(memory: Path, keys: Iterable[str]) -> None:
    """Adds keys. Of two processes that do so at once one may lose its own: its images are then checked once more.

    Where nothing can be written, nothing is remembered.
    """
    rest = "\n".join(sorted({*keys, *recall(memory)}))
    try:
        write_text(memory, f"{_first_line(rest)}\n{rest}")
    except OSError:
        return


def _first_line(rest: str) -> str:
    return f"{_FORM} {hashlib.sha256(rest.encode('ascii')).hexdigest()}"
