"""Folder layouts of data sets in COCO's format: COCO's own, Roboflow's export, and files named one by one."""

import os
from dataclasses import dataclass
from pathlib import Path

from detector.data.formats.coco import parse_coco
from detector.data.formats.data_format import DataFormat
from detector.data.invalid_entries import first_ten
from detector.data.parsed_split import ParsedSplit
from detector.errors import DatasetError

_ROBOFLOW_FILE = "_annotations.coco.json"
_ALIASES = {"val": "valid", "valid": "val"}
"""Roboflow's folders are train, valid and test."""
_PREFIXES = ("instances_", "image_info_")
_OTHER_TASKS = ("captions_", "person_keypoints_", "stuff_", "panoptic_")
"""Files beside COCO's instances that hold no boxes of a detection task."""


@dataclass(frozen=True)
class CocoFiles:
    """Location of a split in COCO's format."""

    name: str
    """'data set/split'"""
    annotations: Path
    images: Path
    labelled: bool = True

    def parse(self) -> ParsedSplit:
        """Read and check the annotation file."""
        return parse_coco(self.annotations, self.images, self.name, labelled=self.labelled)


def explicit_files(annotations: Path, images: Path | None) -> CocoFiles:
    """A named annotation file; without `images`, the folder where COCO's, Roboflow's and CVAT's exports have them."""
    folder, split = _place_of(annotations)
    labelled = not split.startswith("image_info_")
    for prefix in _PREFIXES:
        split = split.removeprefix(prefix)
    if images is None:
        images = next(filter(os.path.isdir, _image_folders(folder, split)), folder)
    return CocoFiles(f"{folder.name}/{split}", Path(os.path.abspath(annotations)), images, labelled)


def dataset_folder(annotations: Path) -> Path:
    """Folder of the data set that a named annotation file belongs to, by its path alone."""
    return _place_of(annotations)[0]


def _place_of(annotations: Path) -> tuple[Path, str]:
    """(folder of the data set, name of the split with COCO's prefix)."""
    annotations = Path(os.path.abspath(annotations))
    folder = annotations.parent
    if annotations.name == _ROBOFLOW_FILE:
        return folder.parent, folder.name
    return (folder.parent if folder.name == "annotations" else folder), annotations.stem


def _find(root: Path, split: str) -> Path | None:
    return next((file for _, file in _candidates(root, split) if os.path.isfile(file)), None)


def _parse(root: Path, split: str, images: Path | None) -> ParsedSplit:
    files = next(((name, file) for name, file in _candidates(root, split) if os.path.isfile(file)), None)
    if files is None:
        raise DatasetError(
            f"has no split {split!r} in COCO's format. Looked for: {_looked_for(split)}",
            file=root,
            field="split",
            remedy=f"Its splits in this format: {', '.join(_splits(root)) or 'none'}",
        )
    name, annotations = files
    candidates = _image_folders(root, name)
    images = images or next(filter(os.path.isdir, candidates), None)
    if images is None:
        raise DatasetError(
            f"its images were looked for in {first_ten(candidates, str)}",
            file=annotations,
            remedy="Name the folder that holds them",
        )
    labelled = not annotations.name.startswith("image_info_")
    return CocoFiles(f"{root.name}/{name}", annotations, images, labelled).parse()


def _splits(root: Path) -> list[str]:
    found = set()
    for file in root.glob("annotations/*.json"):
        if not file.name.startswith(_OTHER_TASKS):
            name = file.stem
            for prefix in _PREFIXES:
                name = name.removeprefix(prefix)
            found.add(name)
    return sorted(found | {file.parent.name for file in root.glob(f"*/{_ROBOFLOW_FILE}")})


def _candidates(root: Path, split: str) -> list[tuple[str, Path]]:
    """(split as the folder spells it, annotation file) in the order of preference."""
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


def _looked_for(split: str) -> str:
    return ", ".join(str(file) for _, file in _candidates(Path(), split))


COCO = DataFormat("coco", _find, _splits, _parse, _looked_for, chooses_images=True)
