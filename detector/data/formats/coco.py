"""COCO's annotation format: one JSON file with 'images', 'annotations' and 'categories'.

Everything is checked before anything is built: each error names the file, the member, the first ten invalid entries and
their count. Polygons are not read: detection needs boxes alone. N images, K annotations.
"""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detector.data.class_list import single_dataset
from detector.data.images.files import find_images
from detector.data.images.header import read_sizes
from detector.data.invalid_entries import first_ten
from detector.data.json_columns import Rows
from detector.data.json_reading import describe_repeated, read_json_object
from detector.data.parsed_split import ParsedSplit, SourceCategory
from detector.data.samples import Dataset
from detector.errors import DatasetError


def load_coco(
    annotations: Path, images: Path | None, classes: tuple[str, ...] | None, name: str, *, labelled: bool = True
) -> Dataset:
    """A COCO file as a data set; arguments and errors as in `parse_coco`.

    Args:
        classes: names in label order, all of which the file must list; annotations of others are dropped. None: the
            file's categories by id, without unused super-categories.
    """
    return single_dataset(parse_coco(annotations, images, name, labelled=labelled), classes)


def parse_coco(annotations: Path, images: Path | None, name: str, *, labelled: bool = True) -> ParsedSplit:
    """Read and check a COCO file.

    Args:
        images: folder that the file names are relative to. None: the ground truth alone, to score results against;
            no image file is looked for, paths are placeholders, and a size the file does not state is 0 x 0.
        name: of the data set, for titles.
        labelled: False for files of test images, which have no 'annotations' (COCO's image_info_*.json).

    Image ids are integers, or all of them strings as converters of VOC data write them.

    Raises DatasetError for all that `read_json_object` refuses; missing members; ids that are not 64-bit integers or
    occur twice; annotations of unknown images or categories; boxes that are not four finite numbers with width and
    height >= 0 (other odd boxes are kept and counted); file names outside the folder; image files that are missing.
    """
    repeated_keys: Counter[str] = Counter()
    content = read_json_object(annotations, ignored_keys=("segmentation",), repeated_keys=repeated_keys)
    categories, category_ids = _categories(Rows.from_list(annotations, content, "categories"))
    image_rows = Rows.from_list(annotations, content, "images")
    if not image_rows.rows:
        raise DatasetError("lists no images", file=annotations, field="images", remedy="Name another split or file")
    image_ids = image_rows.ids("id")
    image_rows.require_unique(image_ids)
    if images is None:
        paths = [Path(os.path.abspath(annotations)).parent / f"image {number}" for number in range(len(image_ids))]
    else:
        paths = find_images(images, image_rows.texts("file_name"), source=annotations)
    image_sizes = _image_sizes(image_rows, paths if images is not None else None)

    annotation_rows = (
        Rows.from_list(annotations, content, "annotations") if labelled else Rows(annotations, "annotations", [])
    )
    annotation_rows.require_unique(annotation_rows.integers("id"))
    boxes = annotation_rows.boxes("bbox")
    return ParsedSplit(
        name=name,
        source=annotations,
        categories=categories,
        lists_unused_classes=True,
        image_paths=paths,
        image_ids=image_ids.tolist(),
        image_sizes=image_sizes,
        image_index=_positions(annotation_rows, "image_id", image_ids, "images"),
        category_index=_positions(annotation_rows, "category_id", category_ids, "categories"),
        boxes_xywh=boxes,
        areas=annotation_rows.areas("area", default=boxes[:, 2] * boxes[:, 3]),
        is_crowd=annotation_rows.flags("iscrowd"),
        is_difficult=np.zeros(len(boxes), dtype=bool),
        has_ignore_mark=annotation_rows.any_mark("ignore", "difficult"),
        notes=tuple(describe_repeated(repeated_keys, annotations)),
    )


def _categories(rows: Rows) -> tuple[tuple[SourceCategory, ...], NDArray[np.int64]]:
    """The categories sorted by id, and their ids."""
    ids, names = rows.integers("id"), rows.texts("name")
    rows.require_unique(ids)
    if not rows.rows:
        raise DatasetError("lists no categories", file=rows.file, field="categories")
    order = np.argsort(ids)
    categories = tuple(
        SourceCategory(names[index], int(ids[index]), _text_or_none(rows.rows[index].get("supercategory")))
        for index in order.tolist()
    )
    return categories, ids[order]


def _text_or_none(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _image_sizes(rows: Rows, paths: Sequence[Path] | None) -> NDArray[np.int64]:
    """(N, 2) height, width as stated; where one is not, from the file's header, or 0 x 0 without files."""
    stated = [(row.get("height"), row.get("width")) for row in rows.rows]
    unstated = [index for index, size in enumerate(stated) if None in size]
    read = np.ones((len(unstated), 2)) if paths is None else read_sizes([paths[index] for index in unstated])
    for index, (height, width) in zip(unstated, read.astype(int).tolist(), strict=True):
        stated[index] = (height, width)
    sizes = np.stack([rows.sizes([size[axis] for size in stated], key) for axis, key in enumerate(("height", "width"))])
    if paths is None:
        sizes[:, unstated] = 0
    return sizes.T.copy()


def _positions(
    rows: Rows, key: str, known_ids: NDArray[np.int64] | NDArray[np.str_], list_name: str
) -> NDArray[np.int64]:
    """(K,) where in `known_ids` each row's id is; DatasetError for ids that are not there."""
    ids = np.array(rows.texts(key)) if known_ids.dtype.kind == "U" else rows.integers(key)
    if not len(ids):
        return np.zeros(0, dtype=np.int64)
    order = np.argsort(known_ids)
    slots = np.searchsorted(known_ids, ids, sorter=order).clip(max=len(known_ids) - 1)
    positions = order[slots]
    unknown = np.flatnonzero(known_ids[positions] != ids).tolist()
    if unknown:
        raise rows.error(
            f"name an entry that {list_name!r} does not have",
            unknown,
            key,
            remedy=f"Known ids begin with: {first_ten(known_ids[order].tolist())}",
        )
    return positions
