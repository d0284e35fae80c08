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
    # Corner by corner: PyTorch's CPU kernels do not vectorise over two of four numbers. And not by prod(dim=-1), whose
    # gradient waits for the device to count zeros.
    x1, y1, x2, y2 = boxes.float().unbind(-1)
    other_x1, other_y1, other_x2, other_y2 = others.float().unbind(-1)
    width = (torch.minimum(x2, other_x2) - torch.maximum(x1, other_x1)).clamp(min=0)
    height = (torch.minimum(y2, other_y2) - torch.maximum(y1, other_y1)).clamp(min=0)
    intersection = width * height
    union = box_area(boxes) + box_area(others) - intersection
    return intersection / union.clamp(min=_SMALLEST_UNION)


def pairwise_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """IoU (..., M, N) float32 of every one of boxes (..., M, 4) with every one of others (..., N, 4); M, N may be 0."""
    return elementwise_iou(_by_corner(boxes)[..., :, None, :], _by_corner(others)[..., None, :, :])


def _by_corner(boxes: Tensor) -> Tensor:
    """The same boxes, all x1 side by side in memory, then all y1 and so on: ten times faster to pair on a CPU."""
    return boxes.movedim(-1, 0).contiguous().movedim(0, -1)
