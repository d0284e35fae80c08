"""The heads on every pyramid level: class logits, box deltas and, for the IoU-aware detector, one IoU logit an anchor.

B images, A_l anchors of one level, K anchors a location, C classes. One set of weights serves all levels.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from detector.config import RetinaNetConfig
from detector.models.fpn import NormName, normalisation


class HeadOutputs(NamedTuple):
    """Outputs of the network for every anchor, per level P3 to P7; anchors ordered y, x, anchor-of-location.

    With channels-last weights these are views of the convolutions' outputs: nothing is copied or concatenated.
    """

    cls_logits: tuple[Tensor, ...]
    """(B, A_l, C)"""
    box_deltas: tuple[Tensor, ...]
    """(B, A_l, 4)"""
    iou_logits: tuple[Tensor, ...] | None
    """(B, A_l), or None for the baseline."""
    feature_shapes: tuple[tuple[int, int], ...] = ()
    """(H_l, W_l) of every level, which is what `AnchorGenerator` asks for."""


class RetinaNetHeads(nn.Module):
    """Two towers of 3x3 convolutions with ReLU and a 3x3 convolution for each output.

    Every weight is N(0, 0.01), every bias 0, but for the class logits' -log((1 - prior) / prior). The IoU logits come
    from the last feature of the box tower, which their gradient reaches (the paper's Figure 1).
    """

    def __init__(self, config: RetinaNetConfig, num_classes: int) -> None:
        super().__init__()
        channels, anchors = config.fpn_channels, config.anchors.per_location
        self.num_classes = num_classes
        self.cls_tower = _tower(channels, config.tower_depth, config.tower_norm)
        self.box_tower = _tower(channels, config.tower_depth, config.tower_norm)
        self.cls_logits = nn.Conv2d(channels, anchors * num_classes, 3, padding=1)
        self.box_deltas = nn.Conv2d(channels, anchors * 4, 3, padding=1)
        _initialise(self)
        assert self.cls_logits.bias is not None
        prior = config.prior_probability
        nn.init.constant_(self.cls_logits.bias, -math.log((1 - prior) / prior))
        self.iou_logits: nn.Conv2d | None = None
        if config.iou_head:
            # A branch of the random stream of its own: one seed gives the baseline and the IoU-aware detector the
            # same weights everywhere else, and leaves the same stream to later draws.
            with torch.random.fork_rng(devices=[]):
                self.iou_logits = nn.Conv2d(channels, anchors, 3, padding=1)
                _initialise(self.iou_logits)

    def forward(self, pyramid: Sequence[Tensor]) -> HeadOutputs:
        """Features (B, channels, H_l, W_l) of every level to the outputs of their A_l = H_l W_l K anchors."""
        cls_logits, box_deltas, iou_logits = [], [], []
        for features in pyramid:
            cls_logits.append(_per_anchor(self.cls_logits(self.cls_tower(features)), self.num_classes))
            box_features = self.box_tower(features)
            box_deltas.append(_per_anchor(self.box_deltas(box_features), 4))
            if self.iou_logits is not None:
                iou_logits.append(_per_anchor(self.iou_logits(box_features), 1).squeeze(-1))
        return HeadOutputs(
            cls_logits=tuple(cls_logits),
            box_deltas=tuple(box_deltas),
            iou_logits=None if self.iou_logits is None else tuple(iou_logits),
            feature_shapes=tuple((features.shape[2], features.shape[3]) for features in pyramid),
        )


def _per_anchor(output: Tensor, values: int) -> Tensor:
    """(B, K values, H, W) to (B, H W K, values); a view where the memory format is channels-last."""
    return output.permute(0, 2, 3, 1).reshape(output.shape[0], -1, values)


def _tower(channels: int, depth: int, norm: NormName) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Conv2d(channels, channels, 3, padding=1), normalisation(norm, channels), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def _initialise(module: nn.Module) -> None:
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=0.01)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
