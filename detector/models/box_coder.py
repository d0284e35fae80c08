"""Boxes to regression deltas and back (means 0, standard deviations 1).

A anchors. Boxes are x1, y1, x2, y2 float32 in the resized frame; deltas are dx, dy in anchor sizes and dw, dh, the
logarithms of the ratios of the sides.
"""

import math

import torch
from torch import Tensor

# 1000 / 16: a box grows or shrinks at most 62.5-fold from its anchor, so that exp never overflows (Faster R-CNN's
# bound). torchvision clamps growth only; MMDetection, which the paper used, clamps both ways.
LARGEST_LOG_RATIO = math.log(1000.0 / 16.0)


def encode(anchors: Tensor, boxes: Tensor) -> Tensor:
    """Deltas (..., A, 4) float32 that turn anchors (..., A, 4) into boxes (..., A, 4); both of positive size."""
    anchor_x, anchor_y, anchor_width, anchor_height = _centre_and_size(anchors)
    x, y, width, height = _centre_and_size(boxes)
    return torch.stack(
        [
            (x - anchor_x) / anchor_width,
            (y - anchor_y) / anchor_height,
            torch.log(width / anchor_width),
            torch.log(height / anchor_height),
        ],
        dim=-1,
    )


def decode(anchors: Tensor, deltas: Tensor) -> Tensor:
    """Boxes (..., A, 4) float32, not clipped to any image, from anchors (..., A, 4) and deltas (..., A, 4)."""
    anchor_x, anchor_y, anchor_width, anchor_height = _centre_and_size(anchors)
    dx, dy, dw, dh = deltas.float().unbind(-1)
    x = dx * anchor_width + anchor_x
    y = dy * anchor_height + anchor_y
    half_width = 0.5 * anchor_width * torch.exp(dw.clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO))
    half_height = 0.5 * anchor_height * torch.exp(dh.clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO))
    return torch.stack([x - half_width, y - half_height, x + half_width, y + half_height], dim=-1)


def _centre_and_size(boxes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x1, y1, x2, y2 = boxes.float().unbind(-1)
    width, height = x2 - x1, y2 - y1
    return x1 + 0.5 * width, y1 + 0.5 * height, width, height
