"""Sizes of images before and after resizing and padding, as (height, width) in pixels."""

from collections.abc import Sequence


def resize_shape(height: int, width: int, short_side_px: int, long_side_px: int) -> tuple[int, int]:
    """(h, w) of an image after resizing: as large as fits, its proportions kept (section 4.1; MMDetection's rounding).

    The scale is min(long / max(height, width), short / min(height, width)), each side int(side * scale + 0.5). A side
    of a very long image that this rounds to 0 becomes 1.
    """
    scale = min(long_side_px / max(height, width), short_side_px / min(height, width))
    return max(int(height * scale + 0.5), 1), max(int(width * scale + 0.5), 1)


def padded_shape(sizes: Sequence[tuple[int, int]], divisor: int) -> tuple[int, int]:
    """(H, W): the smallest multiples of `divisor` that hold every (height, width) of `sizes` (one at least)."""
    height, width = (max(side) for side in zip(*sizes, strict=True))
    return -(-height // divisor) * divisor, -(-width // divisor) * divisor
