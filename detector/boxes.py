"""Box arithmetic: area, clipping and intersection over union.

B images, M and N boxes. Boxes are x1, y1, x2, y2, half-open (width = x2 - x1, no "+1"), in pixels of any one frame.
Everything is computed and returned in float32, whatever the autocast dtype.
"""

import torch
from torch import Tensor

# Smallest normal float32: keeps 0 / 0 of two empty boxes at 0 without touching any real union.
_SMALLEST_UNION = torch.finfo(torch.float32).tiny


def box_area(boxes: Tensor) -> Tensor:
    """Areas (...,) float32, at least 0, of boxes (..., 4); swapped corners count as empty."""
    x1, y1, x2, y2 = boxes.float().unbind(-1)
    return (x2 - x1).clamp(min=0) * (y2 - y1).clamp(min=0)


def clip_boxes(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Clip boxes (B, ..., 4) to images of sizes (B, 2) [height, width]; same shape, float32."""
    height, width = sizes.to(torch.float32).unbind(-1)
    limits = torch.stack([width, height, width, height], dim=-1)
    limits = limits.reshape(sizes.shape[0], *[1] * (boxes.dim() - 2), 4)
    return torch.minimum(boxes.float().clamp(min=0), limits)


def elementwise_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """IoU (...,) float32 in [0, 1] of boxes (..., 4) with others (..., 4), which broadcast against each other.

    Two empty boxes have IoU 0, never NaN. Differentiable in both arguments.
    """
    boxes, others = boxes.float(), others.float()
    top_left = torch.maximum(boxes[..., :2], others[..., :2])
    bottom_right = torch.minimum(boxes[..., 2:], others[..., 2:])
    # Not prod(dim=-1): its gradient waits for the device to count zeros.
    width, height = (bottom_right - top_left).clamp(min=0).unbind(-1)
    intersection = width * height
    union = box_area(boxes) + box_area(others) - intersection
    return intersection / union.clamp(min=_SMALLEST_UNION)


def pairwise_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """IoU (..., M, N) float32 of every one of boxes (..., M, 4) with every one of others (..., N, 4); M, N may be 0."""
    return elementwise_iou(boxes[..., :, None, :], others[..., None, :, :])
