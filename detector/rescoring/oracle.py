"""The ground truth that oracle rows rank by: boxes of whatever class, without crowds, difficult objects included.

The choice is that of `evaluation.correlation.true_ious`.
"""

# B images, G ground-truth boxes

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from detector.data.batching import Batch
from detector.data.box_geometry import corners_from_xywh
from detector.data.samples import Dataset


def truth_boxes(dataset: Dataset, image: int, resized: tuple[int, int]) -> Tensor:
    """(G, 4) float32 x1, y1, x2, y2 in the resized frame, `resized` being its height and width: all but the crowds,
    as annotated, unclipped; G may be 0."""
    rows = dataset.rows(image)
    xywh = dataset.boxes_xywh[rows][~dataset.is_crowd[rows]]
    vertical, horizontal = np.array(resized) / dataset.image_sizes[image]
    scale = np.array([horizontal, vertical, horizontal, vertical])
    return torch.from_numpy((corners_from_xywh(xywh) * scale).astype(np.float32))


def with_truth(batch: Batch, dataset: Dataset) -> Batch:
    """The batch with `truth_boxes` of its images for boxes (B, G, 4) and valid (B, G); labels are 0.

    Args:
        batch: on the CPU, of images of `dataset`.
    """
    images, sizes = batch.image_index.tolist(), batch.sizes.tolist()
    truth = [truth_boxes(dataset, image, (size[0], size[1])) for image, size in zip(images, sizes, strict=True)]
    most = max(len(boxes) for boxes in truth)
    boxes, valid = torch.zeros(len(truth), most, 4), torch.zeros(len(truth), most, dtype=torch.bool)
    for row, of_image in enumerate(truth):
        boxes[row, : len(of_image)], valid[row, : len(of_image)] = of_image, True
    return replace(batch, boxes=boxes, valid=valid, labels=torch.zeros(valid.shape, dtype=torch.int64))
