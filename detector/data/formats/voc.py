"""PASCAL VOC image sets as a data set. N images, K objects."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from detector.data.formats.data_format import DataFormat
from detector.data.formats.voc_folders import VocFiles, find_files, find_trees, image_sets_of
from detector.data.formats.voc_xml import VocAnnotation, read_voc_xml
from detector.data.images.header import read_sizes
from detector.data.invalid_entries import first_ten
from detector.data.parsed_split import ParsedSplit, SourceCategory
from detector.errors import DatasetError

VOC_CLASSES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)


def parse_voc(root: Path, image_sets: str, name: str) -> ParsedSplit:
    """Read and check the images of the named sets and their objects.

    An image's id is its files' stem. That alone says where they lie, never the XML file's own <filename>.

    Args:
        root: a folder of VOC form, or one that holds such folders (a devkit).
        image_sets: '2007:trainval+2012:trainval', or 'trainval' where there is one folder.
        name: of the data set, for titles.

    Raises DatasetError as `find_files` and `read_voc_xml` do.
    """
    files = find_files(root, image_sets)
    annotations = _read_all(files)
    sizes = _image_sizes(annotations, files)
    objects = [(image, item) for image, annotation in enumerate(annotations) for item in annotation.objects]
    class_names = _class_names({item.name for _, item in objects})
    index_of = {class_name: index for index, class_name in enumerate(class_names)}
    boxes = np.array([item.box_xywh for _, item in objects], dtype=np.float64).reshape(-1, 4)
    return ParsedSplit(
        name=name,
        source=f"{root} ({image_sets})",
        categories=tuple(SourceCategory(class_name, id=None) for class_name in class_names),
        lists_unused_classes=False,
        image_paths=[file.image for file in files],
        image_ids=[file.stem for file in files],
        image_sizes=sizes,
        image_index=np.array([image for image, _ in objects], dtype=np.int64),
        category_index=np.array([index_of[item.name] for _, item in objects], dtype=np.int64),
        boxes_xywh=boxes,
        areas=boxes[:, 2] * boxes[:, 3],
        is_crowd=np.zeros(len(objects), dtype=bool),
        is_difficult=np.array([item.is_difficult for _, item in objects], dtype=bool),
        box_convention="inclusive",
    )


def _image_sizes(annotations: list[VocAnnotation], files: list[VocFiles]) -> NDArray[np.int64]:
    """(N, 2) height, width as stated, else from the image file's header."""
    sizes = np.array([annotation.size or (0, 0) for annotation in annotations], dtype=np.int64)
    unstated = np.flatnonzero(sizes[:, 0] == 0)
    sizes[unstated] = read_sizes([files[index].image for index in unstated])
    return sizes


def _class_names(seen: set[str]) -> tuple[str, ...]:
    if seen and seen <= set(VOC_CLASSES):
        return VOC_CLASSES
    return tuple(sorted(seen))


def _read_all(files: list[VocFiles]) -> list[VocAnnotation]:
    """Reads every file before it complains, so that all bad ones are known at once."""
    annotations: list[VocAnnotation] = []
    errors: list[DatasetError] = []
    for file in files:
        try:
            annotations.append(read_voc_xml(file.annotation))
        except DatasetError as error:
            errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise DatasetError(f"{len(errors)} annotation files cannot be used: {first_ten(errors, str)}")
    return annotations


def _find(root: Path, split: str) -> Path | None:
    return next(iter(find_trees(root).values()), None)


def _parse(root: Path, split: str, images: Path | None) -> ParsedSplit:
    return parse_voc(root, split, f"{root.name}/{split}")


def _looked_for(split: str) -> str:
    return "Annotations, JPEGImages and ImageSets/Main in it or its sub-folders"


VOC = DataFormat("voc", _find, image_sets_of, _parse, _looked_for)
