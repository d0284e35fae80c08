"""Header of an image file, read before a pixel is decoded: format, size, orientation.

Only JPEG and PNG are opened, whatever the file is called, and only up to `MAX_PIXELS`: a decompression bomb is refused
here, for the price of its header.

Annotation files do not say whether their sizes and boxes refer to the stored pixels or to the upright picture of a
photo with an EXIF orientation. The rule, here and for every reader: they refer to the upright picture if the size they
state agrees with that (as annotation tools in browsers show it); else to the stored pixels if it agrees with those.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from detector.data.invalid_entries import first_ten
from detector.errors import DatasetError

MAX_PIXELS = 100_000_000
"""Below Pillow's own error limit of 178,956,970; the largest photos in use have about 60 million."""
_ORIENTATION_TAG = 0x0112
_TRANSPOSING = (5, 6, 7, 8)


@contextmanager
def open_image(path: Path) -> Iterator[Image.Image]:
    """A JPEG or PNG with its header read and its pixels not yet; the file is open as long as the context.

    Raises DatasetError for a file that is missing or anything else, a damaged header, and more than `MAX_PIXELS`.
    """
    try:
        file = path.open("rb")
    except (OSError, ValueError) as error:  # ValueError: a null in the name
        raise DatasetError(f"cannot be read ({getattr(error, 'strerror', None) or error})", file=path) from error
    with file:
        yield _open_header(file, path)


def _open_header(file: BinaryIO, path: Path) -> Image.Image:
    try:
        image = Image.open(file, formats=("JPEG", "PNG"))
    except Image.DecompressionBombError as error:
        raise _too_large(path) from error
    except Image.UnidentifiedImageError as error:
        empty = os.fstat(file.fileno()).st_size == 0
        problem = "is an empty file" if empty else "is not a JPEG or PNG image, or its header is damaged"
        raise DatasetError(problem, file=path, remedy="Convert or replace it") from error
    except Exception as error:
        # Pillow's parsers raise what they happen to meet in a hostile header: SyntaxError, struct.error, ValueError...
        raise DatasetError(f"has a damaged header ({error})", file=path, remedy="Replace it") from error
    if image.width * image.height > MAX_PIXELS:
        raise _too_large(path, f"{image.width}x{image.height}")
    return image


def orientation_of(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) to 8; 1 without one or where it cannot be read."""
    exif = Image.Exif()
    try:
        exif.load(image.info.get("exif", b""))
        orientation = exif.get(_ORIENTATION_TAG, 1)
    except Exception:
        # As in open_image. Viewers show such a photo as it is stored.
        return 1
    return orientation if orientation in range(1, 9) else 1


def upright_size(image: Image.Image, orientation: int) -> tuple[int, int]:
    """(height, width) once the orientation is applied."""
    return (image.width, image.height) if orientation in _TRANSPOSING else (image.height, image.width)


def read_size(path: Path) -> tuple[int, int]:
    """(height, width) in pixels of the upright picture, read from the header alone.

    Raises DatasetError for files that are missing, not JPEG or PNG, damaged, or too large.
    """
    with open_image(path) as image:
        return upright_size(image, orientation_of(image))


def read_sizes(paths: Sequence[Path]) -> NDArray[np.int64]:
    """(N, 2) height and width of N images by their headers; several at a time, as storage may be far away.

    Raises DatasetError as `read_size`; of several files, the first ten are named and all are counted.
    """

    def attempt(path: Path) -> tuple[int, int] | DatasetError:
        try:
            return read_size(path)
        except DatasetError as error:
            return error

    with ThreadPoolExecutor(max_workers=8) as pool:
        results = list(pool.map(attempt, paths))
    errors = [result for result in results if isinstance(result, DatasetError)]
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise DatasetError(
            f"the sizes of {len(errors)} images cannot be read: {first_ten(errors, str)}",
            remedy="Replace these files, or remove their entries",
        )
    return np.array(results, dtype=np.int64).reshape(-1, 2)


def _too_large(path: Path, size: str | None = None) -> DatasetError:
    return DatasetError(
        f"has more than {MAX_PIXELS:,} pixels",
        file=path,
        value=size,
        remedy="Scale it down with its boxes, or leave it out",
    )
