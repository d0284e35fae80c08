"""From a file and its ground truth to what the network is shown: resize, flip, and the way back for detections.

G ground-truth boxes, D detections, h and w the resized image's height and width. Boxes are float32 x1, y1, x2, y2 in
pixels; "resized frame" is the network's input, "original frame" the image file's.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from detector.config import DataConfig
from detector.data.images import read_image
from detector.data.samples import Dataset
from detector.data.sizes import resize_shape


@dataclass(frozen=True, eq=False)
class Sample:
    """One image as the network sees it, with what there is to find in it."""

    image: Tensor
    """(3, h, w) uint8 RGB."""
    boxes: Tensor
    """(G, 4) float32 in the resized frame; G may be 0."""
    labels: Tensor
    """(G,) int64"""
    image_index: int
    """Position in the data set."""


def resize_image(image: Tensor, shape: tuple[int, int]) -> Tensor:
    """Bilinear: (3, H, W) uint8 -> (3, h, w) uint8, anti-aliased when shrinking.

    The paper's code resizes with OpenCV, which does not anti-alias. For enlarging, which is what COCO's and VOC's
    images get (640 to 1333 or 500 to 1000 pixels), the two are the same bit for bit (tested); photos of many
    megapixels would turn to moiré without it.
    """
    if tuple(image.shape[1:]) == shape:
        return image
    # torch's uint8 kernel is 2 to 3 times faster on interleaved channels.
    interleaved = image[None].contiguous(memory_format=torch.channels_last)
    return interpolate(interleaved, size=shape, mode="bilinear", antialias=True)[0]


def flip_boxes(boxes: Tensor, width: int) -> Tensor:
    """Mirrors (..., 4) boxes left to right in an image `width` pixels wide; empty in, empty out."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack([width - x2, y1, width - x1, y2], dim=-1)


def load_sample(dataset: Dataset, index: int, config: DataConfig, flip: bool) -> Sample:
    """Reads, resizes and maybe mirrors image `index` of the data set, with its training boxes.

    Boxes are scaled per axis by the actual ratio of resized to original size, which rounding makes differ a little
    between the axes. Raises `DatasetError` naming the file where the image cannot be read.
    """
    height, width = (int(side) for side in dataset.image_sizes[index])
    image = read_image(dataset.image_paths[index], expected_size=(height, width))
    shape = resize_shape(height, width, config.short_side_px, config.long_side_px)
    image = resize_image(image, shape)
    corners, labels = dataset.training_boxes(index)
    boxes = _scale_and_clip(torch.from_numpy(corners), (height, width), shape)
    if flip:
        image = image.flip(-1)
        boxes = flip_boxes(boxes, shape[1])
    return Sample(image, boxes, torch.from_numpy(labels), index)


def to_original_frame(boxes: Tensor, resized: tuple[int, int], original: tuple[int, int]) -> Tensor:
    """Takes (D, 4) boxes from the resized to the original frame, clipped to the image; D may be 0.

    Args:
        resized: height, width of the image as the network saw it, without padding (`Batch.sizes`).
        original: height, width of the image file, as in `Dataset.image_sizes`.
    """
    return _scale_and_clip(boxes, resized, original)


def flips(seed: int, epoch: int, image_indices: NDArray[np.int64], probability: float) -> NDArray[np.bool_]:
    """(n,) which images are mirrored in an epoch.

    A hash of (seed, epoch, image index) and nothing else, so the answer is the same on whichever worker, in whichever
    batch and after whichever resume an image comes up.
    """
    state = _splitmix64(np.array([seed], dtype=np.int64).view(np.uint64))
    state = _splitmix64(state ^ np.uint64(epoch))
    hashed = _splitmix64(state ^ np.asarray(image_indices).astype(np.uint64))
    uniform = (hashed >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return uniform < probability


def _scale_and_clip(boxes: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Boxes of an image of height and width `old` in the same image at height and width `new`."""
    (old_height, old_width), (new_height, new_width) = old, new
    scale = boxes.new_tensor([new_width / old_width, new_height / old_height] * 2)
    limit = boxes.new_tensor([new_width, new_height] * 2)
    return torch.minimum((boxes * scale).clamp(min=0), limit)


def _splitmix64(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The output function of Steele, Lea and Flood's SplitMix64 (2014): mixes 64 bits into 64 bits; wraps around."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
