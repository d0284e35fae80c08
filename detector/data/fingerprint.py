"""A hash by which a data set is known again: two runs saw the same data, or the files were edited in between."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np

from detector.data.images.files import FileStatus
from detector.data.samples import Dataset
from detector.errors import DatasetError

_FORM = "runyard data set 2"
"""Raised where the same data set is hashed differently: 2 has image sizes as height, width."""


def fingerprint(dataset: Dataset, status: FileStatus | None = None) -> str:
    """64 hexadecimal digits: SHA-256 over ids, sizes, boxes, labels, areas, flags, categories, file names and sizes.

    Where the data set lies does not matter, nor what it is called: names count from the images' common folder on.
    Pixels are not read; an edited image is noticed by its file's size in bytes. Raises DatasetError for a missing file.
    """
    folder = Path(os.path.commonpath([path.parent for path in dataset.image_paths])) if len(dataset) else Path()
    status = status or FileStatus()
    described = {
        "form": _FORM,
        "categories": [[category.id, category.name] for category in dataset.categories],
        "image_ids": dataset.image_ids,
        "files": [[path.relative_to(folder).as_posix(), _size_in_bytes(path, status)] for path in dataset.image_paths],
        "box_convention": dataset.box_convention,
    }
    digest = hashlib.sha256(json.dumps(described).encode("ascii"))
    for column, form in (
        (dataset.image_sizes, "<i8"),
        (dataset.offsets, "<i8"),
        (dataset.boxes_xywh, "<f8"),
        (dataset.labels, "<i8"),
        (dataset.areas, "<f8"),
        (dataset.is_crowd, "|b1"),
        (dataset.is_difficult, "|b1"),
    ):
        digest.update(np.ascontiguousarray(column, dtype=form).data)
    return digest.hexdigest()


def _size_in_bytes(path: Path, status: FileStatus) -> int:
    try:
        return status(path).st_size
    except OSError as error:
        raise DatasetError(f"cannot be read ({error.strerror or error})", file=path) from error
