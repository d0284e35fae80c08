"""Ground truth to score a result file against: a COCO file, a folder of any known format, or a run's saved columns."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from detector.data.cache import load_dataset
from detector.data.formats import open_dataset
from detector.data.formats.coco import parse_coco
from detector.data.formats.yolo_description import find_description, is_description
from detector.data.parsed_split import ParsedSplit, to_dataset
from detector.data.samples import Dataset
from detector.errors import ConfigError

Convention = Literal["inclusive", "half_open"]


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """Annotations with what is known about them."""

    dataset: Dataset
    convention: Convention | None
    """Convention of the boxes' widths, where the format says it: see `voc_ap`. None for COCO files."""
    notes: tuple[str, ...] = ()
    """Doubts, one sentence each."""


def read_ground_truth(
    annotations: Path, split: str | None, classes: tuple[str, ...] | None, *, honours_ignore_marks: bool
) -> GroundTruth:
    """Read annotations.

    Args:
        annotations: a COCO JSON file, whose images need not be there; a folder of a data set (or YOLO's data.yaml), of
            which `split` names a part; or the columns (.npz) that a run saved of its validation images.
        split: name of the split in a folder: '2007:test'.
        classes: class names in the order of the detector's labels, which VOC's result files number from 1. None: the
            split's own, see `open_dataset`.
        honours_ignore_marks: take annotations of a COCO file that are marked 'ignore' or 'difficult' as difficult, as
            VOC's protocols do. COCO's protocol goes by 'iscrowd' alone, as pycocotools does.

    Raises ConfigError for a split or classes where they have no meaning, and DatasetError for all that the readers do.
    """
    is_folder = annotations.is_dir() or is_description(annotations)
    if is_folder and not split:
        remedy = "Name the split with --split, such as 2007:test"
        raise ConfigError("needed for a folder", file=annotations, field="split", remedy=remedy)
    if not is_folder and split:
        raise ConfigError("has a meaning for folders only", field="split", value=split, remedy="Leave --split out")
    if not is_folder and classes:
        raise ConfigError(
            "have a meaning for folders only: a file states its own", field="classes", value=list(classes)
        )
    if is_folder and split:
        dataset = open_dataset(annotations, split, classes=classes)
        is_yolo = not annotations.is_dir() or find_description(annotations) is not None
        known: Convention | None = "inclusive" if dataset.box_convention == "inclusive" else None
        return GroundTruth(dataset, "half_open" if is_yolo and known is None else known)
    if annotations.suffix == ".npz":
        dataset = load_dataset(annotations)
        return GroundTruth(dataset, "inclusive" if dataset.box_convention == "inclusive" else None)
    parsed = parse_coco(annotations, None, annotations.stem)
    notes = list(parsed.notes)
    marked = 0 if parsed.has_ignore_mark is None else int(parsed.has_ignore_mark.sum())
    if marked and honours_ignore_marks:
        parsed = replace(parsed, is_difficult=np.asarray(parsed.has_ignore_mark))
        notes.append(f"{marked:,} annotations are marked 'ignore' or 'difficult' and treated as VOC's difficult ones")
    elif marked:
        notes.append(
            f"{marked:,} annotations are marked 'ignore' or 'difficult', which COCO's protocol does not know: they "
            "count like all others, as in pycocotools; 'iscrowd' would exempt them"
        )
    return GroundTruth(_with_every_category(parsed), None, tuple(notes))


def _with_every_category(split: ParsedSplit) -> Dataset:
    """The ground truth of a COCO file with every category that it lists, by id.

    Result files go by ids, so that categories without boxes, super-categories and equal names are all kept here, unlike
    in training.
    """
    by_id = tuple(replace(category, name=str(category.id)) for category in split.categories)
    positions = {category.name: position for position, category in enumerate(by_id)}
    dataset = to_dataset(replace(split, categories=by_id, notes=(), has_ignore_mark=None), tuple(positions), positions)
    names = (category.name for category in split.categories)
    categories = (replace(category, name=name) for category, name in zip(dataset.categories, names, strict=True))
    return replace(dataset, categories=tuple(categories))
