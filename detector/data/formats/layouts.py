"""Opening a data set by its folder: COCO's layout, Roboflow's, PASCAL VOC's, or files named one by one."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from detector.data.class_list import single_dataset, training_and_validation
from detector.data.formats.coco import parse_coco
from detector.data.formats.voc import parse_voc
from detector.data.formats.voc_folders import find_trees
from detector.data.invalid_entries import first_offenders
from detector.data.parsed_split import ParsedSplit
from detector.data.samples import Dataset
from detector.errors import DatasetError

DataFormat = Literal["auto", "coco", "voc"]

_ROBOFLOW_FILE = "_annotations.coco.json"
_ALIASES = {"val": "valid", "valid": "val"}
"""Roboflow's folders are train, valid and test."""


@dataclass(frozen=True)
class _CocoFiles:
    """Where a split in COCO's format lies."""

    name: str
    annotations: Path
    images: Path
    labelled: bool = True


def open_dataset(
    root: Path | None,
    split: str,
    *,
    format: DataFormat = "auto",
    annotations: Path | None = None,
    images: Path | None = None,
    classes: tuple[str, ...] | None = None,
) -> Dataset:
    """One split of a data set.

    Args:
        root: the data set's folder; may be left out where `annotations` is given.
        split: its name. 'train' also finds COCO's 'train2017', 'val' also 'val2017' and Roboflow's 'valid'. In a VOC
            folder it names image sets: 'trainval', '2007:trainval+2012:trainval'.
        format: 'auto' tells COCO from VOC by the files that are there.
        annotations: a COCO JSON file, wherever it lies.
        images: the images' folder; by default the one that belongs to the annotation file's place.
        classes: names in label order; None: those of this split (`single_dataset`).

    Raises DatasetError, which lists what was looked for and what was found, where there is no such data set, and for
    all that `parse_coco` and `parse_voc` refuse.
    """
    return single_dataset(_parse(root, split, format, annotations, images), classes)


def open_splits(
    root: Path | None,
    train_split: str,
    val_split: str,
    *,
    format: DataFormat = "auto",
    classes: tuple[str, ...] | None = None,
    train_annotations: Path | None = None,
    train_images: Path | None = None,
    val_annotations: Path | None = None,
    val_images: Path | None = None,
) -> tuple[Dataset, Dataset]:
    """Training and validation split with one class list: `classes`, else that of the training split.

    Arguments as in `open_dataset`, errors also as in `training_and_validation`.
    """
    train = _parse(root, train_split, format, train_annotations, train_images)
    val = _parse(root, val_split, format, val_annotations, val_images)
    return training_and_validation(train, val, classes)


def _parse(
    root: Path | None, split: str, format: DataFormat, annotations: Path | None, images: Path | None
) -> ParsedSplit:
    if annotations is not None:
        if format == "voc":
            raise DatasetError(
                "is a COCO file, and the format was said to be VOC", file=annotations, field="format",
                remedy="Leave one of the two out",
            )  # fmt: skip
        return _parse_coco(_explicit_coco(annotations, images))
    if root is None:
        raise DatasetError("no data set was named", field="root", remedy="Name its folder, or its annotation file")
    root = Path(os.path.abspath(root))
    if not os.path.isdir(root):
        problem = "is no folder" if os.path.exists(root) else "there is no such folder"
        raise DatasetError(problem, file=root, remedy="Name the data set's folder")
    if not split:
        raise DatasetError("must not be empty", file=root, field="split", remedy="Name the split, such as 'train'")
    coco = _find_coco(root, split, images) if format != "voc" else None
    trees = find_trees(root) if format != "coco" else {}
    if coco and trees:
        raise DatasetError(
            f"is laid out as COCO ({coco.annotations}) and as VOC ({next(iter(trees.values()))}) at once", file=root,
            field="format", remedy="Say which: coco or voc",
        )  # fmt: skip
    if coco:
        return _parse_coco(coco)
    if trees or format == "voc":
        if images is not None:
            raise DatasetError(
                "cannot be chosen for VOC folders, which hold their images", field="images", value=images
            )
        return parse_voc(root, split, f"{root.name}/{split}")
    raise _not_found(root, split)


def _parse_coco(files: _CocoFiles) -> ParsedSplit:
    return parse_coco(files.annotations, files.images, files.name, labelled=files.labelled)


def _explicit_coco(annotations: Path, images: Path | None) -> _CocoFiles:
    """The named file; without an images folder, the one where COCO's, Roboflow's and CVAT's exports have it."""
    annotations = Path(os.path.abspath(annotations))
    folder, split = annotations.parent, annotations.stem
    if annotations.name == _ROBOFLOW_FILE:
        folder, split = folder.parent, folder.name
    elif folder.name == "annotations":
        folder = folder.parent
    labelled = not split.startswith("image_info_")
    split = split.removeprefix("instances_").removeprefix("image_info_")
    if images is None:
        images = next(filter(os.path.isdir, _image_folders(folder, split)), folder)
    return _CocoFiles(f"{folder.name}/{split}", annotations, images, labelled)


def _find_coco(root: Path, split: str, images: Path | None) -> _CocoFiles | None:
    """The first of `_coco_annotations` that is there, with its images; None where none is."""
    for name, annotations in _coco_annotations(root, split):
        if not os.path.isfile(annotations):
            continue
        candidates = _image_folders(root, name)
        images = images or next(filter(os.path.isdir, candidates), None)
        if images is None:
            raise DatasetError(
                f"its images were looked for in {first_offenders(candidates, str)}", file=annotations,
                remedy="Name the folder that holds them",
            )  # fmt: skip
        return _CocoFiles(f"{root.name}/{name}", annotations, images, not annotations.name.startswith("image_info_"))
    return None


def _coco_annotations(root: Path, split: str) -> list[tuple[str, Path]]:
    """(split as spelt in the folder, annotation file) in the order of preference."""
    spellings = [split, f"{split}2017", *([_ALIASES[split]] if split in _ALIASES else [])]
    return [
        (name, root / file)
        for name in spellings
        for file in (
            Path("annotations", f"instances_{name}.json"),
            Path("annotations", f"image_info_{name}.json"),
            Path("annotations", f"{name}.json"),
            Path(name, _ROBOFLOW_FILE),
        )
    ]


def _image_folders(root: Path, split: str) -> list[Path]:
    # COCO's test-dev2017 is a part of the images of test2017.
    names = dict.fromkeys((split, split.replace("test-dev", "test")))
    return [root / parent / name for parent in ("", "images") for name in names] + [root / "images"]


def _not_found(root: Path, split: str) -> DatasetError:
    looked_for = [str(file.relative_to(root)) for _, file in _coco_annotations(root, split)]
    found = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in os.scandir(root))
    return DatasetError(
        f"has no split {split!r} of a layout known here. Looked for: {', '.join(looked_for)} (COCO); Annotations, "
        f"JPEGImages and ImageSets/Main in it or its sub-folders (VOC). The folder holds: "
        f"{first_offenders(found) or 'nothing'}",
        file=root, field="split", remedy="Name another folder or split, or give the annotation file and images folder",
    )  # fmt: skip
