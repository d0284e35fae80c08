"""The true IoU of every anchor, which takes the predicted one's place for the headroom of localisation confidence.

An anchor's true IoU is that of its regressed, clipped box with the best ground-truth box of the image, of whatever
class. IoU does not change when both axes are scaled, so that the resized frame serves as well as the original one, up
to rounding.
"""

# B images, A anchors (A_l of level l), G ground-truth boxes

from collections.abc import Sequence

import torch
from torch import Tensor

from detector.boxes import clip_boxes, elementwise_iou
from detector.models.box_coder import decode


def true_anchor_ious(
    box_deltas: Sequence[Tensor], anchors: Sequence[Tensor], image_sizes: Tensor, truth: Sequence[Tensor]
) -> list[Tensor]:
    """Per level (B, A_l) float32, 0 to 1; 0 without ground truth, NaN where a box is.

    Args:
        box_deltas: per level (B, A_l, 4), of any float type.
        anchors: per level (A_l, 4) float32, resized frame.
        image_sizes: (B, 2) height and width of the images without padding, resized frame.
        truth: per image (G, 4) float32 x1, y1, x2, y2, resized frame; G may be 0.
    """
    per_level = []
    for level_anchors, deltas in zip(anchors, box_deltas, strict=True):
        boxes = clip_boxes(decode(level_anchors, deltas.float()), image_sizes)
        best = torch.zeros_like(boxes[..., 0])
        for image, of_image in enumerate(truth):
            for box in of_image.to(boxes.device):  # one at a time: 200,000 anchors by 60 boxes are 50 MB a matrix
                best[image] = torch.maximum(best[image], elementwise_iou(boxes[image], box))
        per_level.append(best)
    return per_level
