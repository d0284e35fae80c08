"""YOLO's format as Ultralytics lays it out: data.yaml, images/ and labels/ as mirrored folders. N images, K objects.

An image's label file has its path with the last folder 'images' replaced by 'labels' and the suffix .txt; it lies
in the image's folder where none is called 'images'. An image without a label file has no objects. Images have no ids of
their own: their paths below the data set's folder serve. Areas, which COCO's format takes from masks, are the boxes'.
"""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from detector.data.formats.data_format import DataFormat
from detector.data.formats.yolo_description import (
    SPLIT_KEYS,
    YoloDescription,
    find_description,
    inside,
    is_description,
    read_description,
)
from detector.data.formats.yolo_labels import read_labels
from detector.data.images.files import list_files
from detector.data.images.header import read_sizes
from detector.data.invalid_entries import first_ten, short_repr
from detector.data.parsed_split import ParsedSplit, SourceCategory
from detector.errors import DatasetError

__all__ = ["YOLO", "is_description", "parse_yolo"]

logger = logging.getLogger(__name__)

_READ = (".jpg", ".jpeg", ".png")
_NOT_READ = (".avif", ".bmp", ".dng", ".heic", ".jp2", ".jpeg2000", ".mpo", ".tif", ".tiff", ".webp")
"""Image formats that Ultralytics also reads: leaving them out in silence would change the data set."""


def parse_yolo(file: Path, split: str, name: str) -> ParsedSplit:
    """Read and check a split.

    Args:
        file: the data.yaml.
        split: 'train', 'val' (also 'valid') or 'test'.
        name: name of the split, for titles.

    Raises DatasetError as `read_description`, `read_labels` and `read_sizes` do; for splits without images, images
    listed twice or of formats that are not read, and splits none of whose images has a label file.
    """
    description = read_description(file)
    images = _images(description, split)
    label_files = _label_files(images, description.file)
    image_sizes = read_sizes(images)
    labels, fractions = _read_all(label_files, description)
    counts = [len(column) for column in labels]
    image_index = np.repeat(np.arange(len(images), dtype=np.int64), counts)
    height, width = image_sizes[image_index].T
    boxes = np.concatenate(fractions) * np.stack([width, height, width, height], axis=1)
    return ParsedSplit(
        name=name,
        source=f"{file} ({split})",
        categories=tuple(
            SourceCategory(class_name, number) for number, class_name in enumerate(description.class_names)
        ),
        lists_unused_classes=True,
        image_paths=images,
        image_ids=[path.relative_to(description.root).as_posix() for path in images],
        image_sizes=image_sizes,
        image_index=image_index,
        category_index=np.concatenate(labels),
        boxes_xywh=boxes,
        areas=boxes[:, 2] * boxes[:, 3],
        is_crowd=np.zeros(len(boxes), dtype=bool),
        is_difficult=np.zeros(len(boxes), dtype=bool),
    )


def _images(description: YoloDescription, split: str) -> list[Path]:
    """The images of a split: those of folders in the order of their paths, those of lists as listed."""
    images = []
    for entry in description.entries(split):
        images += _images_below(entry) if os.path.isdir(entry) else _listed_images(entry, description.root)
    if not images:
        raise DatasetError(
            "has no images",
            file=description.file,
            field=split,
            value=list(description.splits.get(split, ()))[:3],
            remedy=f"Images are {', '.join(_READ)} files",
        )
    seen: set[Path] = set()
    repeated = [image for image in images if image in seen or seen.add(image)]  # type: ignore[func-returns-value]
    if repeated:
        raise DatasetError(
            f"{len(repeated)} images are listed more than once: {first_ten(repeated, str)}",
            file=description.file,
            field=split,
            remedy="Name folders and lists that do not overlap",
        )
    return images


def _images_below(folder: Path) -> list[Path]:
    """Image files in a folder and its sub-folders; hidden ones, which macOS adds for each file, are left out."""
    images: list[Path] = []
    others: list[Path] = []
    for parent, _, files in os.walk(folder):
        for file in files:
            suffix = os.path.splitext(file)[1].lower()
            if not file.startswith(".") and suffix in (*_READ, *_NOT_READ):
                (images if suffix in _READ else others).append(Path(parent, file))
    if others:
        raise DatasetError(
            f"{len(others)} images are of a format that is not read: {first_ten(sorted(others), str)}",
            file=folder,
            remedy=f"Convert them to JPEG or PNG ({', '.join(_READ)})",
        )
    return sorted(images)


def _listed_images(list_file: Path, root: Path) -> list[Path]:
    """Image files that the lines of a text file name, relative to that file's folder or to the data set's."""
    try:
        lines = list_file.read_bytes().decode("utf-8-sig", errors="surrogateescape").splitlines()
    except OSError as error:
        raise DatasetError(f"cannot be read ({error.strerror or error})", file=list_file) from error
    images, bad = [], []
    for number, line in enumerate(lines, start=1):
        name = line.strip()
        if not name:
            continue
        candidates = [inside(root, str(base / name)) for base in (list_file.parent, root)]
        found = next((path for path in candidates if path is not None and os.path.isfile(path)), None)
        if found is None:
            bad.append(f"line {number}: {short_repr(name)}")
        else:
            images.append(found)
    if bad:
        raise DatasetError(
            f"{len(bad)} of {len(bad) + len(images)} lines do not name an image in {root}: {first_ten(bad, str)}",
            file=list_file,
            remedy="Write paths relative to this file or to the folder of the data set",
        )
    return images


def _label_files(images: Sequence[Path], source: Path) -> list[Path | None]:
    """The label file of every image, None for images without one."""
    places = [_label_path(image) for image in images]
    present = {}
    for folder in {place.parent for place in places}:
        present[folder] = list_files(folder) if os.path.isdir(folder) else set()
    found = [place if place.name in present[place.parent] else None for place in places]
    missing = sum(place is None for place in found)
    if missing == len(found):
        raise DatasetError(
            f"none of {len(found)} images has a label file; the first was looked for at {places[0]}",
            file=source,
            remedy="Labels lie in 'labels' where images lie in 'images', with the same names and .txt",
        )
    if missing:
        logger.warning("%s: %d of %d images have no label file, and so no objects", source, missing, len(found))
    return found


def _label_path(image: Path) -> Path:
    folders = list(image.parts[:-1])
    for position in range(len(folders) - 1, 0, -1):
        if folders[position] == "images":
            folders[position] = "labels"
            break
    return Path(*folders, image.stem + ".txt")


def _read_all(
    files: Sequence[Path | None], description: YoloDescription
) -> tuple[list[NDArray[np.int64]], list[NDArray[np.float64]]]:
    """Classes and boxes of every image; reads every file before it complains, so that all bad ones are known."""
    labels, boxes = [], []
    errors: list[DatasetError] = []
    nothing = np.zeros(0, dtype=np.int64), np.zeros((0, 4))
    for file in files:
        try:
            found = (
                nothing
                if file is None
                else read_labels(file, len(description.class_names), description.keypoint_values)
            )
        except DatasetError as error:
            errors.append(error)
            continue
        labels.append(found[0])
        boxes.append(found[1])
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise DatasetError(f"{len(errors)} label files cannot be used: {first_ten(errors, str)}")
    return labels, boxes


def _splits(root: Path) -> list[str]:
    file = find_description(root)
    return [] if file is None else sorted(read_description(file).splits)


def _parse(root: Path, split: str, images: Path | None) -> ParsedSplit:
    file = find_description(root)
    if file is None:
        raise DatasetError("has no data.yaml", file=root, remedy=f"Looked for: {_looked_for(split)}")
    folder = Path(os.path.abspath(file)).parent
    return parse_yolo(file, split, f"{folder.name}/{split}")


def _looked_for(split: str) -> str:
    return f"data.yaml with {' or '.join(SPLIT_KEYS)}"


YOLO = DataFormat("yolo", lambda root, _: find_description(root), _splits, _parse, _looked_for)
