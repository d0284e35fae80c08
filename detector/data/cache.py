"""A `Dataset` in one file, so that annotations are parsed once and every worker loads columns.

The file is a NumPy archive without pickles; everything else is JSON text within it.
"""

import io
import json
from dataclasses import fields
from pathlib import Path

import numpy as np

from detector.data.samples import Category, Dataset, UnusableImage
from detector.errors import DatasetError
from detector.files import atomic_file, read_regular

_ARRAYS = ("image_sizes", "offsets", "boxes_xywh", "labels", "areas", "is_crowd", "is_difficult")
_TEXT = "text"
_VERSION = 2
"""Raised where the columns change: 2 has image sizes as height, width (1 had width, height and stated no version)."""


def save_dataset(dataset: Dataset, path: Path) -> None:
    """Write the data set to `path`, whole or not at all; an earlier file is replaced. OSErrors are passed on."""
    text = {
        "version": _VERSION,
        "name": dataset.name,
        "categories": [[category.id, category.name] for category in dataset.categories],
        "image_paths": [str(image) for image in dataset.image_paths],
        "image_ids": dataset.image_ids,
        "box_convention": dataset.box_convention,
        "skipped": [[str(image.path), image.reason] for image in dataset.skipped],
    }
    stored = {*text, *_ARRAYS} - {"version"}
    assert stored == {field.name for field in fields(Dataset)}, "a new member of Dataset must be stored"
    content = {name: getattr(dataset, name) for name in _ARRAYS}
    content[_TEXT] = np.frombuffer(json.dumps(text).encode("ascii"), dtype=np.uint8)
    with atomic_file(path) as file:
        np.savez(file, allow_pickle=False, **content)


def load_dataset(path: Path) -> Dataset:
    """The data set that `save_dataset` wrote; DatasetError where the file is missing, damaged or something else."""
    try:
        content = read_regular(path)
    except OSError as error:
        raise DatasetError(f"cannot be read ({error.strerror or error})", file=path) from error
    try:
        return _parse(content)
    except Exception as error:
        # Python's and NumPy's readers of archives raise what they happen to meet.
        problem = str(error) or type(error).__name__
        raise DatasetError(
            f"holds no data set ({problem})", file=path, remedy="Delete it: the next start writes it again"
        ) from error


def _parse(content: bytes) -> Dataset:
    with np.load(io.BytesIO(content), allow_pickle=False) as members:
        arrays = {name: members[name] for name in _ARRAYS}
        text = json.loads(members[_TEXT].tobytes())
    if (version := text.get("version", 1)) != _VERSION:
        raise ValueError(f"expected columns of version {_VERSION}, found version {version!r}")
    dataset = Dataset(
        name=text["name"],
        categories=tuple(Category(id, name) for id, name in text["categories"]),
        image_paths=tuple(map(Path, text["image_paths"])),
        image_ids=tuple(text["image_ids"]),
        box_convention=text["box_convention"],
        skipped=tuple(UnusableImage(Path(path), reason) for path, reason in text["skipped"]),
        **arrays,
    )
    _check(dataset)
    return dataset


def _check(dataset: Dataset) -> None:
    """ValueError, naming the member, where a file that is whole could not have come from `save_dataset`."""
    images, boxes = len(dataset.image_paths), len(dataset.labels)
    for name, shape, kind in (
        ("image_sizes", (images, 2), np.int64),
        ("offsets", (images + 1,), np.int64),
        ("boxes_xywh", (boxes, 4), np.float64),
        ("labels", (boxes,), np.int64),
        ("areas", (boxes,), np.float64),
        ("is_crowd", (boxes,), np.bool_),
        ("is_difficult", (boxes,), np.bool_),
    ):
        column = getattr(dataset, name)
        _require(column.shape == shape and column.dtype == kind, name)
    offsets, labels = dataset.offsets, dataset.labels
    _require(offsets[0] == 0 and offsets[-1] == boxes and (np.diff(offsets) >= 0).all(), "offsets")
    _require(((labels >= 0) & (labels < len(dataset.categories))).all(), "labels")
    _require(np.isfinite(dataset.boxes_xywh).all() and (dataset.boxes_xywh[:, 2:] >= 0).all(), "boxes_xywh")
    _require((dataset.areas >= 0).all(), "areas")
    _require(len(dataset.image_ids) == images and {type(i) for i in dataset.image_ids} <= {int, str}, "image_ids")
    _require(all(image.is_absolute() for image in dataset.image_paths), "image_paths")
    _require(all((type(c.id), type(c.name)) == (int, str) for c in dataset.categories), "categories")
    _require(dataset.box_convention in ("half_open", "inclusive"), "box_convention")
    texts = (dataset.name, *(image.reason for image in dataset.skipped))
    _require(all(type(text) is str for text in texts), "name or skipped")


def _require(holds: "bool | np.bool_", name: str) -> None:
    if not holds:
        raise ValueError(f"{name} is not as it was written")
