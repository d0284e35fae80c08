"""From an image file to RGB pixels.

Pillow decodes everything. torchvision's decoder takes a quarter less time for a JPEG, with the same pixels, but it is
deprecated since 0.29, and its PNG part ends the process (segmentation fault) on a file whose checksums do not hold.
H, W image height and width.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from detector.data.images.header import open_image, orientation_of, upright_size
from detector.errors import DatasetError


def read_image(path: Path, expected_size: tuple[int, int] | None = None) -> Tensor:
    """(3, H, W) uint8 RGB, of any strides: grey is repeated, alpha dropped, 16 bits cut to the upper 8, animations
    give their first frame.

    Args:
        expected_size: (height, width) that the annotations state. The EXIF orientation is applied where the upright
            picture has this size or none is given, and is ignored where the stored pixels have it.

    Raises DatasetError for a file that is missing, empty, cut off, neither JPEG nor PNG, larger than
    `image_header.MAX_PIXELS`, or of another size than expected.
    """
    with open_image(path) as image:
        orientation = _decide_orientation(path, image, expected_size)
        return _oriented(_decode(image, path), orientation)


def check_image(path: Path, expected_size: tuple[int, int] | None = None) -> None:
    """Raises the DatasetError that `read_image` would, for half of its price: no pixels are kept.

    Of a JPEG all coefficients are read, for that is where damage shows, but they are turned into an eighth of its
    rows and columns.
    """
    with open_image(path) as image:
        _decide_orientation(path, image, expected_size)
        image.draft(None, (max(image.width // 8, 1), max(image.height // 8, 1)))
        _load(image, path)


def _decide_orientation(path: Path, image: Image.Image, expected_size: tuple[int, int] | None) -> int:
    """The orientation to apply, by the rule in `image_header`."""
    orientation = orientation_of(image)
    if expected_size is None or upright_size(image, orientation) == tuple(expected_size):
        return orientation
    if (image.height, image.width) == tuple(expected_size):
        return 1
    raise DatasetError(
        f"is {image.width}x{image.height} pixels, the annotations say {expected_size[1]}x{expected_size[0]}",
        file=path,
        remedy="Its boxes may be off by that scale: correct the annotations or replace the file",
    )


def _decode(image: Image.Image, path: Path) -> Tensor:
    """The stored pixels, (3, H, W)."""
    _load(image, path)
    if image.mode.startswith("I"):  # 16 bits of grey, which convert() would clip at 255
        grey = (np.asarray(image) >> 8).astype(np.uint8)
        return torch.from_numpy(grey).expand(3, -1, -1)
    if image.mode != "RGB":
        image.info.pop("transparency", None)  # else Pillow would carry it over, or warn that it cannot
        image = image.convert("RGB")
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _load(image: Image.Image, path: Path) -> None:
    try:
        image.load()
    except Exception as error:
        # As for headers: a decoder may raise anything on damaged data.
        raise DatasetError(f"is damaged ({error})", file=path, remedy="Replace it") from error


def _oriented(image: Tensor, orientation: int) -> Tensor:
    """Stored pixels (3, H, W) made upright, by EXIF's table of where row 0 and column 0 are."""
    if orientation >= 5:
        image = image.transpose(1, 2)
    flipped = [dim for dim, orientations in ((1, (3, 4, 7, 8)), (2, (2, 3, 6, 7))) if orientation in orientations]
    return image.flip(flipped) if flipped else image
