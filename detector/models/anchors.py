"""Anchors: nine boxes at every location of P3 to P7.

B images, A anchors, A_l anchors of one level. Anchors are x1, y1, x2, y2 float32 in the resized frame, without the
"+1" widths and the rounding of MMDetection 1. Their order everywhere is level, y, x, aspect ratio, scale.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from detector.config import AnchorConfig

STRIDES = (8, 16, 32, 64, 128)


class AnchorGenerator:
    """Makes the anchors of feature maps of any size; holds no tensors of its own.

    Only the first anchors on a device are copied there: those of a new size are computed there.
    """

    def __init__(self, config: AnchorConfig, strides: tuple[int, ...] = STRIDES) -> None:
        self.config = config
        self.strides = strides

    def __call__(self, feature_shapes: Sequence[tuple[int, int]], device: torch.device | str) -> tuple[Tensor, ...]:
        """Anchors (A_l, 4) of each level, from its feature map's (height, width).

        The last few results are kept and shared: do not write into them.
        """
        if len(feature_shapes) != len(self.strides):
            raise ValueError(f"{len(feature_shapes)} feature maps for {len(self.strides)} strides")
        shapes = tuple((int(height), int(width)) for height, width in feature_shapes)
        return _all_levels(self.config, self.strides, shapes, torch.device(device))

    def inside_mask(self, anchors: Sequence[Tensor], sizes: Tensor) -> Tensor:
        """(B, A) bool: False for anchors wholly in the padding.

        `sizes` (B, 2) is [height, width] of the real image within the padded batch. Anchors that cross its edge stay.
        """
        height, width = sizes.to(torch.float32).unbind(-1)
        flat = torch.cat(tuple(anchors))
        # Padding lies to the right and below only, and every anchor reaches its centre, which is never negative.
        return (flat[:, 0] < width[:, None]) & (flat[:, 1] < height[:, None])


# 201,600 anchors are 3.2 MB: eight padded shapes bound what a long run with many image sizes keeps on the device.
@lru_cache(maxsize=8)
def _all_levels(
    config: AnchorConfig, strides: tuple[int, ...], shapes: tuple[tuple[int, int], ...], device: torch.device
) -> tuple[Tensor, ...]:
    # Made in inference mode, a cached anchor could never take part in a later training step.
    with torch.inference_mode(False):
        return tuple(_one_level(config, stride, *shape, device) for stride, shape in zip(strides, shapes, strict=True))


def _one_level(config: AnchorConfig, stride: int, height: int, width: int, device: torch.device) -> Tensor:
    cell = _cell_on_device(config, stride, device)
    y = (torch.arange(height, dtype=torch.float32, device=device) + config.centre_offset) * stride
    x = (torch.arange(width, dtype=torch.float32, device=device) + config.centre_offset) * stride
    centre_y, centre_x = torch.meshgrid(y, x, indexing="ij")
    centres = torch.stack([centre_x, centre_y, centre_x, centre_y], dim=-1)
    return (centres[:, :, None] + cell).reshape(-1, 4)


@lru_cache
def _cell_on_device(config: AnchorConfig, stride: int, device: torch.device) -> Tensor:
    """(anchors of a location, 4); kept because making a tensor from numbers waits for a GPU."""
    return torch.tensor(_cell_anchors(config, stride), dtype=torch.float32, device=device)


def _cell_anchors(config: AnchorConfig, stride: int) -> list[tuple[float, float, float, float]]:
    """Corners of one location's anchors relative to its centre; area (base_size stride scale)^2 at every ratio."""
    corners = []
    for aspect_ratio in config.aspect_ratios:
        for scale in config.scales:
            side = config.base_size * stride * scale
            half_height = side * math.sqrt(aspect_ratio) / 2
            half_width = side / math.sqrt(aspect_ratio) / 2
            corners.append((-half_width, -half_height, half_width, half_height))
    return corners
