"""A YOLO label file: one object a line, 'class cx cy w h' as fractions of the image's width and height. G objects.

A polygon ('class x1 y1 x2 y2 x3 y3 ...', segmentation) becomes the box around it: that is what Ultralytics trains a
detector on, and it is exact. A pose line has the box first; its key points are left out.
"""

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from detector.data.invalid_entries import first_ten, short_repr
from detector.errors import DatasetError

MAX_BYTES = 64 * 2**20
"""A million objects."""
TOLERANCE = 0.01
"""Ultralytics' own: a fraction may be so far below 0 or above 1, as annotation tools round."""
_SMALLEST_POLYGON = 6


def read_labels(
    path: Path, num_classes: int, keypoint_values: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Classes (G,) and boxes (G, 4) x, y, width, height as fractions of the image's size; G may be 0.

    Args:
        keypoint_values: numbers after the box that are left out (`YoloDescription.keypoint_values`).

    Raises DatasetError naming the file and the first ten bad lines by number: a wrong number of values, a value that
    is not a finite number or lies outside 0 to 1, a class that is not a whole number from 0 to `num_classes` - 1, a
    negative width or height. A byte order mark, CRLF and empty lines do no harm.
    """
    labels: list[int] = []
    boxes: list[tuple[float, float, float, float]] = []
    problems: list[str] = []
    for number, line in enumerate(_read_lines(path), start=1):
        values = line.split()
        if not values:
            continue
        try:
            label, box = _parse_line(values, num_classes, keypoint_values)
        except ValueError as error:
            problems.append(f"line {number}: {error}")
            continue
        labels.append(label)
        boxes.append(box)
    if problems:
        raise DatasetError(
            first_ten(problems, str),
            file=path,
            remedy="Expected 'class cx cy w h' with fractions of the image's width and height, or 'class x1 y1 x2 y2 "
            "x3 y3 ...' for a polygon",
        )
    return np.array(labels, dtype=np.int64), np.array(boxes, dtype=np.float64).reshape(-1, 4)


def _read_lines(path: Path) -> list[str]:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DatasetError(f"is larger than {MAX_BYTES // 2**20} MiB", file=path)
        return path.read_bytes().decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DatasetError(f"is not UTF-8 text ({error.reason} at byte {error.start})", file=path) from error
    except OSError as error:
        raise DatasetError(f"cannot be read ({error.strerror or error})", file=path) from error


def _parse_line(
    texts: list[str], num_classes: int, keypoint_values: int
) -> tuple[int, tuple[float, float, float, float]]:
    """Class and x, y, width, height of a line; ValueError says what is wrong with it."""
    try:
        numbers = [float(text) for text in texts]
    except ValueError:
        raise ValueError(f"expected numbers, found {short_repr(' '.join(texts))}") from None
    label, values = numbers[0], numbers[1:]
    if not (label.is_integer() and 0 <= label < num_classes):
        raise ValueError(f"expected a class from 0 to {num_classes - 1}, found {texts[0][:20]}")
    if keypoint_values:
        if len(values) != 4 + keypoint_values:
            raise ValueError(f"expected {5 + keypoint_values} values (kpt_shape), found {len(texts)}")
        values = values[:4]
    if len(values) == 5:
        raise ValueError("found 6 values: the last one looks like a score, and predictions are not labels")
    if len(values) != 4 and (len(values) % 2 or len(values) < _SMALLEST_POLYGON):
        raise ValueError(f"expected 5 values, or 7 or more for a polygon, found {len(texts)}")
    bad = [value for value in values if not (math.isfinite(value) and -TOLERANCE <= value <= 1 + TOLERANCE)]
    if bad:
        hint = " (in pixels?)" if max(map(abs, bad)) > 1 + TOLERANCE else ""
        raise ValueError(f"expected fractions from 0 to 1, found {bad[0]:g}{hint}")
    if len(values) > 4:
        x1, y1, x2, y2 = min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])
        return int(label), (x1, y1, x2 - x1, y2 - y1)
    cx, cy, width, height = values
    if width < 0 or height < 0:
        raise ValueError(f"expected a width and height of at least 0, found {width:g} and {height:g}")
    return int(label), (cx - width / 2, cy - height / 2, width, height)
