"""Our NMS keeps the very boxes that torchvision's kernel keeps when run class by class, in float32."""

import pytest
import torch
from torch import Tensor
from torchvision.ops import nms
from torchvision.ops.boxes import _batched_nms_vanilla

from detector.models.nms import best_pairs


def ours(boxes: Tensor, scores: Tensor, iou_threshold: float, limit: int | None = None) -> Tensor:
    pairs = torch.arange(scores.numel())
    return best_pairs(
        boxes, pairs, scores.flatten(), scores.shape[1], iou_threshold=iou_threshold, limit=limit or scores.numel()
    )  # fmt: skip


def torchvision_per_class(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Positions anchor * C + class, by score descending, then position."""
    num_classes = scores.shape[1]
    kept = torch.cat(
        [nms(boxes, scores[:, label], iou_threshold) * num_classes + label for label in range(num_classes)]
    ).sort().values  # fmt: skip
    return kept[scores.flatten()[kept].sort(descending=True, stable=True).indices]


def make_boxes(kind: str, generator: torch.Generator, count: int) -> Tensor:
    if kind == "spread":
        corner = torch.rand(count, 2, generator=generator) * 1000
        return torch.cat([corner, corner + torch.rand(count, 2, generator=generator) * 300], dim=1)
    if kind == "clustered":
        centre = torch.randint(0, 8, (count, 1), generator=generator) * 100.0
        return centre + torch.tensor([0.0, 0.0, 80.0, 60.0]) + torch.randn(count, 4, generator=generator) * 8
    if kind == "whole":  # small whole numbers: IoUs that hit thresholds such as 0.5 and 0.6 exactly
        corner = torch.randint(0, 6, (count, 2), generator=generator).float()
        return torch.cat([corner, corner + torch.randint(0, 6, (count, 2), generator=generator)], dim=1)
    far = make_boxes("clustered", generator, count)
    return far * 37.7 + 30_000.0  # "far": coordinates whose float32 spacing is coarse


@pytest.mark.parametrize("iou_threshold", [0.0, 0.1, 0.3, 0.5, 0.6, 0.7, 0.9])
@pytest.mark.parametrize("kind", ["spread", "clustered", "whole", "far"])
@pytest.mark.parametrize("tied", [False, True])
def test_equals_torchvision_per_class(kind: str, iou_threshold: float, tied: bool) -> None:
    generator = torch.Generator().manual_seed(int(iou_threshold * 10))
    boxes = make_boxes(kind, generator, 400)
    scores = torch.rand(400, 3, generator=generator)
    if tied:
        scores = (scores * 16).round() / 16
    expected = torchvision_per_class(boxes, scores, iou_threshold)
    assert torch.equal(ours(boxes, scores, iou_threshold), expected)
    assert torch.equal(ours(boxes, scores, iou_threshold, limit=50), expected[:50])


@pytest.mark.parametrize("kind", ["spread", "clustered", "whole", "far"])
def test_equals_batched_nms_vanilla(kind: str) -> None:
    generator = torch.Generator().manual_seed(7)
    boxes = make_boxes(kind, generator, 500)
    scores = torch.randperm(500 * 4, generator=generator).reshape(500, 4) / 2000.0  # all different: one order
    labels = torch.arange(4).repeat(500)
    expected = _batched_nms_vanilla(boxes.repeat_interleave(4, dim=0), scores.flatten(), labels, 0.5)
    assert torch.equal(ours(boxes, scores, 0.5), expected)
