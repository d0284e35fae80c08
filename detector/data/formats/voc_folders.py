"""PASCAL VOC's folders: Annotations/ (one XML file an image), JPEGImages/ and ImageSets/Main/ (lists of images).

A devkit holds several such folders (VOC2007, VOC2012), and a split names image sets of them:
'2007:trainval+2012:trainval'. Other data sets come as one such folder, whose image sets are named alone: 'trainval'.
"""

import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from detector.data.images.files import list_files
from detector.data.invalid_entries import first_ten
from detector.errors import DatasetError

_SUFFIXES = (".jpg", ".jpeg", ".png")
_IMAGE_SET = re.compile(r"(?:(\d{4}):)?([^:+/\\\0]+)")
_YEAR_FOLDER = re.compile(r"VOC(\d{4})")
_YEAR = re.compile(r"\d{4}")


@dataclass(frozen=True)
class VocFiles:
    """Files of one image; `stem` is the name that image and annotation share."""

    stem: str
    annotation: Path
    image: Path


def find_trees(root: Path) -> dict[str, Path]:
    """The folders of VOC form at or below `root`: those of a devkit by year ('2007'), any other by its name.

    `root` itself, else its sub-folders, else those of root/VOCdevkit; {} without any.
    """
    root = Path(os.path.abspath(root))
    for candidates in ([root], _subfolders(root), _subfolders(root / "VOCdevkit")):
        trees = {_year_or_name(folder): folder for folder in candidates if _is_tree(folder)}
        if trees:
            return trees
    return {}


def image_sets_of(root: Path) -> list[str]:
    """Names of the splits of a VOC folder ('trainval') or devkit ('2007:trainval'), sorted; without per-class sets."""
    trees = find_trees(root)
    found = []
    for key, tree in trees.items():
        names = {file.removesuffix(".txt") for file in list_files(tree / "ImageSets" / "Main") if file.endswith(".txt")}
        # VOC has lists such as cat_train.txt and train.txt.
        whole = [name for name in names if name.rpartition("_")[2] not in names - {name}]
        found += [f"{key}:{name}" if _YEAR.fullmatch(key) else name for name in whole]
    return sorted(set(found))


def find_files(root: Path, image_sets: str) -> list[VocFiles]:
    """The images that the named sets list, set by set in the order of their lines; one at least.

    A line may have a second column, as in VOC's per-class sets: every image listed is used, whatever it says.

    Raises DatasetError for image sets that are unknown or empty, images listed twice, and files that are missing.
    """
    trees = find_trees(root)
    if not trees:
        raise DatasetError(
            "holds no VOC folder",
            file=root,
            remedy="It, or its sub-folders, must have Annotations, JPEGImages and ImageSets/Main",
        )
    files = [file for tree, set_name in _parse(root, trees, image_sets) for file in _files_of_set(tree, set_name)]
    seen: set[str] = set()
    repeated: list[str] = []
    for file in files:
        (repeated.append if file.stem in seen else seen.add)(file.stem)
    if repeated:
        raise DatasetError(
            f"{len(repeated)} images are listed more than once: {first_ten(repeated)}",
            file=root,
            field="split",
            value=image_sets,
            remedy="Name image sets that do not overlap",
        )
    return files


def _parse(root: Path, trees: Mapping[str, Path], image_sets: str) -> list[tuple[Path, str]]:
    """(folder, set name) for each part of 'YEAR:SET+YEAR:SET' or plain 'SET'."""
    parts = []
    for part in image_sets.split("+"):
        match = _IMAGE_SET.fullmatch(part.strip())
        if match is None:
            raise DatasetError(
                "is not a VOC split",
                file=root,
                field="split",
                value=image_sets,
                remedy="Write 'trainval', or '2007:trainval+2012:trainval' for a devkit",
            )
        key, set_name = match.groups()
        if key is None and len(trees) == 1:
            key = next(iter(trees))
        if key not in trees:
            raise DatasetError(
                f"holds several VOC folders, and {part!r} does not say which" if key is None else f"has no VOC{key}",
                file=root,
                field="split",
                value=image_sets,
                remedy=f"Image sets that are there: {first_ten(image_sets_of(root), str)}. Name some of them, "
                "joined by '+', with --data.train-split and --data.val-split",
            )
        parts.append((trees[key], set_name))
    return parts


def _files_of_set(tree: Path, set_name: str) -> list[VocFiles]:
    set_file = tree / "ImageSets" / "Main" / f"{set_name}.txt"
    lines = [line.strip() for line in _read_lines(set_file)]
    annotations, images = tree / "Annotations", tree / "JPEGImages"
    annotated = {os.path.splitext(file)[0] for file in list_files(annotations) if file.endswith(".xml")}
    stems = [_stem(line, annotated) for line in lines if line]
    if not stems:
        raise DatasetError("lists no images", file=set_file, remedy="Name another image set")
    _require_present(stems, annotated, "annotation files (.xml)", annotations, set_file)
    image_of = _images_by_stem(images)
    _require_present(stems, image_of, f"images ({', '.join(_SUFFIXES)})", images, set_file)
    return [VocFiles(stem, annotations / f"{stem}.xml", images / image_of[stem]) for stem in stems]


def _read_lines(set_file: Path) -> list[str]:
    try:
        # Bytes that are not UTF-8 are kept as Python keeps them in file names.
        return set_file.read_text(encoding="utf-8-sig", errors="surrogateescape").splitlines()
    except FileNotFoundError as error:
        known = sorted(file.removesuffix(".txt") for file in list_files(set_file.parent) if file.endswith(".txt"))
        raise DatasetError(
            "no such image set",
            file=set_file,
            field="split",
            value=set_file.stem,
            remedy=f"There are: {first_ten(known, str)}",
        ) from error
    except OSError as error:
        raise DatasetError(f"cannot be read ({error.strerror or error})", file=set_file) from error


def _stem(line: str, annotated: set[str]) -> str:
    """The image that a line names: 'stem' or 'stem -1' (0, 1); a stem may hold spaces."""
    words = line.rsplit(maxsplit=1)
    return words[0] if len(words) == 2 and words[1] in ("-1", "0", "1") and line not in annotated else line


def _images_by_stem(folder: Path) -> dict[str, str]:
    """Stem -> file name; of several files with one stem, the first by suffix as in `_SUFFIXES`."""
    ranked: list[tuple[int, str, str]] = []
    for file in list_files(folder):
        stem, suffix = os.path.splitext(file)
        if suffix.lower() in _SUFFIXES:
            ranked.append((_SUFFIXES.index(suffix.lower()), stem, file))
    return {stem: file for _, stem, file in sorted(ranked, reverse=True)}


def _require_present(stems: list[str], present: Collection[str], what: str, folder: Path, set_file: Path) -> None:
    missing = [stem for stem in stems if stem not in present]
    if missing:
        raise DatasetError(
            f"{len(missing)} of the {len(stems)} {what} that {set_file} lists are missing: {first_ten(missing)}",
            file=folder,
            remedy="Add them, or remove their lines",
        )


def _subfolders(folder: Path) -> list[Path]:
    try:
        return sorted(Path(entry.path) for entry in os.scandir(folder) if entry.is_dir())
    except OSError:
        return []


def _is_tree(folder: Path) -> bool:
    return all(os.path.isdir(folder / part) for part in ("Annotations", "JPEGImages", "ImageSets/Main"))


def _year_or_name(folder: Path) -> str:
    match = _YEAR_FOLDER.fullmatch(folder.name)
    return match.group(1) if match else folder.name
