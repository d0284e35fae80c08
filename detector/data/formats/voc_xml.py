"""One PASCAL VOC annotation file: an image's size and objects. G objects.

The files are untrusted: document types and entities are refused (billion laughs, external files), and only the class
names in the file are used.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detector.data.invalid_entries import short_repr
from detector.data.samples import LARGEST_COORDINATE_PX
from detector.errors import DatasetError

MAX_BYTES = 64 * 2**20
"""Some 200,000 objects."""
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True)
class VocObject:
    """An annotated object."""

    name: str
    box_xywh: tuple[float, float, float, float]
    """Half-open: the file's corners are 1-based and inclusive, so x = xmin - 1 and width = xmax - xmin + 1."""
    is_difficult: bool


@dataclass(frozen=True)
class VocAnnotation:
    """Content of one file."""

    size: tuple[int, int] | None
    """(height, width); None where the file does not say, or says 0 as some tools do."""
    objects: tuple[VocObject, ...]


def read_voc_xml(path: Path) -> VocAnnotation:
    """Read and check an annotation file; coordinates may be fractions, `difficult` may be missing (0).

    Raises DatasetError naming the file, and the object by its number from 1 on, for a file that is missing, too large,
    not XML, with a document type or without a root <annotation>, and for objects without name or box, with corners that
    are not finite numbers, or swapped.
    """
    root = _parse(path)
    objects = tuple(_object(path, number, element) for number, element in enumerate(root.findall("object"), start=1))
    return VocAnnotation(_size(path, root), objects)


def _parse(path: Path) -> Any:
    from xml.etree.ElementTree import ParseError

    from defusedxml import DefusedXmlException
    from defusedxml.ElementTree import fromstring

    try:
        if path.stat().st_size > MAX_BYTES:
            raise DatasetError(f"is larger than {MAX_BYTES // 2**20} MiB", file=path)
        root = fromstring(path.read_bytes(), forbid_dtd=True)
    except OSError as error:
        raise DatasetError(f"cannot be read ({error.strerror or error})", file=path) from error
    except DefusedXmlException as error:
        raise DatasetError(
            "declares a document type or entities, which VOC annotations do not need and attacks do",
            file=path,
            remedy="Remove the declaration",
        ) from error
    except DatasetError:
        raise
    except (ParseError, ValueError, LookupError) as error:
        raise DatasetError(f"is not valid XML ({error})", file=path, remedy="It may be cut off") from error
    if root.tag != "annotation":
        raise DatasetError("is not a VOC annotation", file=path, value=f"root element <{root.tag}>")
    return root


def _size(path: Path, root: Any) -> tuple[int, int] | None:
    texts = [(root.findtext(f"size/{side}") or "").strip() for side in ("height", "width")]
    if "" in texts:
        return None
    numbers = [_number(text) for text in texts]
    if not all(number.is_integer() and 0 <= number < 2**31 for number in numbers):
        raise DatasetError("must be two whole numbers", file=path, field="size", value=texts)
    return (int(numbers[0]), int(numbers[1])) if min(numbers) > 0 else None


def _object(path: Path, number: int, element: Any) -> VocObject:
    name = (element.findtext("name") or "").strip()
    where = f"object {number}"
    if not name:
        raise DatasetError("has no name", file=path, field=where)
    where += f" ({short_repr(name)})"
    # Not found by iteration: the <part>s of VOC's person layout have boxes too.
    texts = [(element.findtext(f"bndbox/{corner}") or "").strip() for corner in _CORNERS]
    corners = [_number(text) for text in texts]
    if not all(map(math.isfinite, corners)):
        raise DatasetError(
            "needs a <bndbox> with four finite numbers xmin, ymin, xmax, ymax", file=path, field=where, value=texts
        )
    if max(map(abs, corners)) > LARGEST_COORDINATE_PX:
        raise DatasetError(f"must lie within {LARGEST_COORDINATE_PX:,.0f} px", file=path, field=where, value=texts)
    x_min, y_min, x_max, y_max = corners
    if x_max < x_min or y_max < y_min:
        raise DatasetError("has swapped corners: xmax < xmin or ymax < ymin", file=path, field=where, value=texts)
    difficult = (element.findtext("difficult") or "0").strip()
    if difficult not in ("0", "1"):
        raise DatasetError("must be 0 or 1", file=path, field=f"{where}: difficult", value=difficult)
    box = (x_min - 1, y_min - 1, x_max - x_min + 1, y_max - y_min + 1)
    return VocObject(name, box, difficult == "1")


def _number(text: str) -> float:
    """The number, or NaN where the text is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan
