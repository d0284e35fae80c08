"""A `Dataset` in one file, so that annotations are parsed once and every worker loads columns.

The file is a NumPy archive without pickles; what is no array is JSON text within it.
"""

import io
import json
import os
import zipfile
from dataclasses import fields
from pathlib import Path
from uuid import uuid4

import numpy as np

from detector.data.samples import Category, Dataset, UnusableImage
from detector.errors import DatasetError

_ARRAYS = ("image_sizes", "offsets", "boxes_xywh", "labels", "areas", "is_crowd", "is_difficult")
_TEXT = "text"


def save_dataset(dataset: Dataset, path: Path) -> None:
    """Writes the data set to `path`, whole or not at all; an earlier file is replaced. OSErrors are passed on."""
    text = {
        "name": dataset.name,
        "categories": [[category.id, category.name] for category in dataset.categories],
        "image_paths": [str(image) for image in dataset.image_paths],
        "image_ids": dataset.image_ids,
        "box_convention": dataset.box_convention,
        "skipped": [[str(image.path), image.reason] for image in dataset.skipped],
    }
    assert {*text, *_ARRAYS} == {field.name for field in fields(Dataset)}, "a new member of Dataset must be stored"
    content = {name: getattr(dataset, name) for name in _ARRAYS}
    content[_TEXT] = np.frombuffer(json.dumps(text).encode("ascii"), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid4().hex}.partial")
    try:
        with temporary.open("xb") as file:
            np.savez(file, allow_pickle=False, **content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load_dataset(path: Path) -> Dataset:
    """What `save_dataset` wrote; DatasetError where the file is missing, damaged or something else."""
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as content:
            arrays = {name: content[name] for name in _ARRAYS}
            text = json.loads(content[_TEXT].tobytes())
        return Dataset(
            name=text["name"],
            categories=tuple(Category(id, name) for id, name in text["categories"]),
            image_paths=tuple(map(Path, text["image_paths"])),
            image_ids=tuple(text["image_ids"]),
            box_convention=text["box_convention"],
            # Files of runs from before images could be skipped lack it.
            skipped=tuple(UnusableImage(Path(path), reason) for path, reason in text.get("skipped", ())),
            **arrays,
        )
    except OSError as error:
        raise DatasetError(f"cannot be read ({error.strerror or error})", file=path) from error
    except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise DatasetError(
            f"holds no data set ({error})", file=path, remedy="Delete it: the next start writes it again"
        ) from error
