"""The data formats, in one list, and the functions that open a data set in any of them.

A new format is a module with a `DataFormat`, and its word in `detector.config.names`.
"""

import os
from pathlib import Path

from detector.config import names
from detector.config.names import FormatName
from detector.data.class_list import later_split, single_dataset, training_and_validation
from detector.data.formats.coco_folders import COCO, dataset_folder, explicit_files
from detector.data.formats.data_format import DataFormat
from detector.data.formats.yolo import is_description
from detector.data.invalid_entries import first_ten
from detector.data.parsed_split import ParsedSplit
from detector.data.samples import Dataset
from detector.errors import DatasetError

FORMATS: tuple[DataFormat, ...] = tuple(names.load(reference) for reference in names.FORMATS.values())


def open_dataset(
    root: Path | None,
    split: str,
    *,
    format: FormatName = "auto",
    annotations: Path | None = None,
    images: Path | None = None,
    classes: tuple[str, ...] | None = None,
) -> Dataset:
    """One split of a data set.

    Args:
        root: folder of the data set, or YOLO's data.yaml; not needed where `annotations` is given.
        split: name. 'train' also finds COCO's 'train2017', 'val' also 'val2017' and Roboflow's 'valid'. In a VOC
            folder it names image sets: 'trainval', '2007:trainval+2012:trainval'.
        annotations: COCO JSON file, at any place.
        images: folder of the images; by default the one that belongs to the annotation file's place.
        classes: names in label order; None: those of this split (`single_dataset`).

    Raises DatasetError, which lists what was looked for and what was found, where no such data set, and for
    all that the format's `parse` refuses.
    """
    return single_dataset(_parse(root, split, format, annotations, images), classes)


def open_splits(
    root: Path | None,
    train_split: str,
    val_split: str,
    *,
    format: FormatName = "auto",
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


def open_split(
    root: Path | None,
    split: str,
    classes: tuple[str, ...],
    *,
    drop_other_classes: bool = False,
    format: FormatName = "auto",
    annotations: Path | None = None,
    images: Path | None = None,
) -> Dataset:
    """A further split (test) for a detector whose class list is settled.

    Args:
        classes: names in label order, those of the training data (`Dataset.class_names`).
        drop_other_classes: True where the user stated the class list, so that boxes of other classes are left out;
            False: such boxes are a DatasetError.

    Other arguments and errors as in `open_dataset`.
    """
    return later_split(_parse(root, split, format, annotations, images), classes, drop_other_classes)


def dataset_name(root: Path | None, annotations: Path | None = None) -> str:
    """Name of a data set for folder names and titles, from the paths alone; no file is opened.

    It is what precedes the '/' in `Dataset.name` of its splits. Arguments as in `open_dataset`.
    """
    if annotations is not None:
        return dataset_folder(annotations).name
    if root is None:
        raise _nothing_named()
    root = Path(os.path.abspath(root))
    return root.parent.name if is_description(root) else root.name


def _parse(
    root: Path | None, split: str, format: FormatName, annotations: Path | None, images: Path | None
) -> ParsedSplit:
    if annotations is not None:
        if format not in ("auto", COCO.name):
            raise DatasetError(
                f"is a COCO file, and the format was said to be {format.upper()}",
                file=annotations,
                field="format",
                remedy="Leave one of the two out",
            )
        return explicit_files(annotations, images).parse()
    if root is None:
        raise _nothing_named()
    root = Path(os.path.abspath(root))
    if not os.path.isdir(root) and not (is_description(root) and os.path.isfile(root)):
        problem = "is not a folder" if os.path.exists(root) else "no such folder"
        raise DatasetError(problem, file=root, remedy="Name the folder of the data set, or YOLO's data.yaml")
    if not split:
        raise DatasetError("must not be empty", file=root, field="split", remedy="Name the split, such as 'train'")
    chosen = _format_of(root, split, format)
    if images is not None and not chosen.chooses_images:
        raise DatasetError(
            f"cannot be chosen for {chosen.name.upper()} data sets, whose images have their place",
            field="images",
            value=images,
        )
    return chosen.parse(root, split, images)


def _format_of(root: Path, split: str, format: FormatName) -> DataFormat:
    if format != "auto":
        return next(candidate for candidate in FORMATS if candidate.name == format)
    found = [(candidate, place) for candidate in FORMATS if (place := candidate.find(root, split)) is not None]
    if len(found) == 1:
        return found[0][0]
    if found:
        places = " and as ".join(f"{candidate.name.upper()} ({place})" for candidate, place in found)
        raise DatasetError(
            f"is laid out as {places} at once",
            file=root,
            field="format",
            remedy=f"Say which: {' or '.join(candidate.name for candidate, _ in found)}",
        )
    looked_for = "; ".join(f"{candidate.looked_for(split)} ({candidate.name.upper()})" for candidate in FORMATS)
    held = sorted(entry.name + ("/" if entry.is_dir() else "") for entry in os.scandir(root))
    known = [f"{name} ({candidate.name.upper()})" for candidate in FORMATS for name in candidate.splits(root)]
    raise DatasetError(
        f"has no split {split!r} in a known format. Looked for: {looked_for}. The folder holds: "
        f"{first_ten(held) or 'nothing'}. Its splits: {first_ten(known, str) or 'none'}",
        file=root,
        field="split",
        remedy="Name another folder or split, or give the annotation file and images folder",
    )


def _nothing_named() -> DatasetError:
    return DatasetError("no data set was named", field="root", remedy="Name its folder, or its annotation file")
