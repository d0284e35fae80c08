"""Random outputs of a network, and post-processing written out plainly, for the tests of post-processing."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detector.boxes import clip_boxes
from detector.config import ScoringConfig
from detector.models.box_coder import decode
from detector.models.detector import Detections
from detector.models.heads import HeadOutputs
from detector.models.postprocess import Candidates, best_logits, gather_candidates, probability, select_anchors

ALPHAS = [0.0, 0.1, 0.3, 0.5, 0.9, 1.0]
Case = tuple[HeadOutputs, tuple[Tensor, ...], Tensor, Tensor]
Found = tuple[np.float32, int, int, np.ndarray]
"""Score, anchor, class, box."""
FIELDS = ("boxes", "scores", "labels", "class_scores", "ious", "anchor_index")


def make_case(
    seed: int,
    *,
    num_images: int = 1,
    level_sizes: tuple[int, ...] = (30, 12, 5),
    num_classes: int = 3,
    iou_head: bool = True,
    step: float = 0.0,
    duplicates: bool = False,
    mean: float = -1.0,
) -> Case:
    """Random outputs over boxes that overlap a good deal; `step` above 0 rounds the logits, which makes ties."""
    generator = torch.Generator().manual_seed(seed)
    anchors, cls_logits, box_deltas, iou_logits = [], [], [], []
    for size in level_sizes:
        corner = torch.rand(size, 2, generator=generator) * 60
        anchors.append(torch.cat([corner, corner + 5 + torch.rand(size, 2, generator=generator) * 40], dim=1))
        logits = torch.randn(num_images, size, num_classes, generator=generator) * 2 + mean
        deltas = torch.randn(num_images, size, 4, generator=generator) * 0.2
        quality = torch.randn(num_images, size, generator=generator)
        if duplicates:
            anchors[-1][1:] = anchors[-1][torch.arange(size - 1) // 4]
            deltas = torch.zeros_like(deltas)
        if step > 0:
            logits, quality = (logits / step).round() * step, (quality / step).round() * step
        cls_logits.append(logits)
        box_deltas.append(deltas)
        iou_logits.append(quality)
    outputs = HeadOutputs(
        cls_logits=tuple(cls_logits), box_deltas=tuple(box_deltas), iou_logits=tuple(iou_logits) if iou_head else None
    )
    valid = torch.rand(num_images, sum(level_sizes), generator=generator) > 0.2
    sizes = torch.randint(50, 90, (num_images, 2), generator=generator)
    return outputs, tuple(anchors), valid, sizes


def changed(outputs: HeadOutputs, change: Callable[[Tensor], Tensor]) -> HeadOutputs:
    """The outputs with `change` applied to each tensor."""
    iou_logits = outputs.iou_logits
    return HeadOutputs(
        cls_logits=tuple(map(change, outputs.cls_logits)),
        box_deltas=tuple(map(change, outputs.box_deltas)),
        iou_logits=None if iou_logits is None else tuple(map(change, iou_logits)),
    )


def select_candidates(
    outputs: HeadOutputs, anchors: Sequence[Tensor], anchor_valid: Tensor, image_sizes: Tensor, scoring: ScoringConfig
) -> list[Candidates]:
    """The top-k anchors of each level, decoded, one entry an image."""
    ious = None if outputs.iou_logits is None else [probability(logits) for logits in outputs.iou_logits]
    kept = select_anchors(best_logits(outputs), ious, anchor_valid, scoring)
    return gather_candidates(outputs, anchors, image_sizes, kept)


def plain_scores(cls_logits: Tensor, iou_logits: Tensor | None, scoring: ScoringConfig) -> np.ndarray:
    """Eq. 5 in float64 with numpy, rounded once: (A, C) float32."""
    p = (1 / (1 + np.exp(-cls_logits.double().numpy()))).astype(np.float32).astype(np.float64)
    if iou_logits is None or scoring.confidence == "class":
        return p.astype(np.float32)
    q = (1 / (1 + np.exp(-iou_logits.double().numpy()))).astype(np.float32).astype(np.float64)[:, None]
    if scoring.confidence == "none":
        return p.astype(np.float32) * q.astype(np.float32)
    return (p**scoring.alpha * q ** (1 - scoring.alpha)).astype(np.float32)


def plain_postprocess(
    outputs: HeadOutputs, anchors: Sequence[Tensor], anchor_valid: Tensor, image_sizes: Tensor, scoring: ScoringConfig
) -> list[list[Found]]:
    """The definition: all scores, then everything by sorting and loops."""
    results = []
    for image, size in enumerate(image_sizes):
        candidates, offset = [], 0
        for level, level_anchors in enumerate(anchors):
            iou_logits = None if outputs.iou_logits is None else outputs.iou_logits[level][image].float()
            scores = plain_scores(outputs.cls_logits[level][image].float(), iou_logits, scoring)
            boxes = clip_boxes(decode(level_anchors, outputs.box_deltas[level][image].float())[None], size[None])[0]
            best = scores.max(axis=1)
            places = [a for a in range(len(scores)) if anchor_valid[image, offset + a]]
            ranked = sorted((-best[place], place) for place in places)[: scoring.top_k]
            for _, place in ranked:
                for label, score in enumerate(scores[place]):
                    if score > np.float32(scoring.score_threshold):
                        candidates.append((score, offset + place, label, boxes[place].numpy()))
            offset += len(level_anchors)
        kept: list[Found] = []
        for found in sorted(candidates, key=lambda c: (-c[0], c[1], c[2])):
            if all(found[2] != k[2] or not plain_iou(found[3], k[3]) > scoring.nms_iou for k in kept):
                kept.append(found)
        results.append(kept[: scoring.max_detections])
    return results


def plain_iou(a: np.ndarray, b: np.ndarray) -> float:
    width = max(min(a[2], b[2]) - max(a[0], b[0]), np.float32(0))
    height = max(min(a[3], b[3]) - max(a[1], b[1]), np.float32(0))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return float(width * height / union) if union > 0 else 0.0


def assert_equals_plain(detections: Detections, expected: list[Found]) -> None:
    assert list(zip(detections.anchor_index.tolist(), detections.labels.tolist(), strict=True)) == [
        (anchor, label) for _, anchor, label, _ in expected
    ]
    assert detections.scores.tolist() == [float(score) for score, *_ in expected]
    for box, (*_, expected_box) in zip(detections.boxes, expected, strict=True):
        assert np.array_equal(box.numpy(), expected_box)


def assert_same(first: Detections, second: Detections) -> None:
    for name in FIELDS:
        torch.testing.assert_close(getattr(first, name), getattr(second, name), rtol=0, atol=0, equal_nan=True)


def one_level(cls_logits: Any, iou_logits: Any = None, boxes: Tensor | None = None) -> Case:
    """One image and level whose boxes are as given (default: apart from each other)."""
    cls_logits = torch.as_tensor(cls_logits, dtype=torch.float32)
    count = len(cls_logits)
    if boxes is None:
        left = torch.arange(count) * 20.0
        boxes = torch.stack([left, torch.zeros(count), left + 10, torch.full((count,), 10.0)], dim=1)
    outputs = HeadOutputs(
        cls_logits=(cls_logits[None],),
        box_deltas=(torch.zeros(1, count, 4),),
        iou_logits=None if iou_logits is None else (torch.as_tensor(iou_logits, dtype=torch.float32)[None],),
    )
    return outputs, (boxes,), torch.ones(1, count, dtype=torch.bool), torch.tensor([[1000, 100_000]])


def logit(p: Any) -> Tensor:
    return torch.as_tensor(p, dtype=torch.float64).logit().float()
