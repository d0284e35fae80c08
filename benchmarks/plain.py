"""Definitions written out plainly, in float64 on the CPU: the reference of the fast paths before timing.

A anchors, C classes, K candidates. Slow and short on purpose; shares no code with what it checks but the configuration.
"""

import math

import torch
from torch import Tensor

from benchmarks.workloads import HeadCase
from detector.config import LossConfig, ScoringConfig
from detector.data.batching import Batch


def plain_postprocess(case: HeadCase, scoring: ScoringConfig) -> dict[tuple[int, int], float]:
    """(anchor, class) -> score of the detections of one image under confidence 'alpha'."""
    assert case.outputs.iou_logits is not None
    boxes, scores, anchors = [], [], []
    offset = 0
    for level, level_anchors in enumerate(case.anchors):
        p = case.outputs.cls_logits[level][0].double().sigmoid()
        q = case.outputs.iou_logits[level][0].double().sigmoid()
        combined = p**scoring.alpha * q[:, None] ** (1 - scoring.alpha)
        kept = combined.amax(dim=1).topk(min(scoring.top_k, len(combined))).indices
        boxes.append(_decode(level_anchors[kept].double(), case.outputs.box_deltas[level][0, kept].double()))
        scores.append(combined[kept])
        anchors.append(kept + offset)
        offset += len(level_anchors)
    height, width = case.image_sizes[0].tolist()
    limits = torch.tensor([width, height, width, height], dtype=torch.float64)
    boxes_K4 = torch.minimum(torch.cat(boxes).clamp(min=0), limits)
    scores_KC, anchors_K = torch.cat(scores), torch.cat(anchors)
    places, labels = (scores_KC > scoring.score_threshold).nonzero(as_tuple=True)
    order = scores_KC[places, labels].argsort(descending=True, stable=True)
    found: dict[tuple[int, int], float] = {}
    kept_of_class: dict[int, list[Tensor]] = {}
    for pair in order.tolist():
        place, label = int(places[pair]), int(labels[pair])
        earlier = kept_of_class.setdefault(label, [])
        if earlier and bool((_iou(boxes_K4[place], torch.stack(earlier)) > scoring.nms_iou).any()):
            continue
        earlier.append(boxes_K4[place])
        found[(int(anchors_K[place]), label)] = float(scores_KC[place, label])
        if len(found) == scoring.max_detections:
            break
    return found


def plain_losses(case: HeadCase, batch: Batch, config: LossConfig) -> tuple[float, float, float, float]:
    """Sums over the batch: focal loss, smooth L1, binary cross entropy of the IoU, and the normaliser."""
    assert case.outputs.iou_logits is not None
    anchors = torch.cat(case.anchors).double()
    cls_logits = torch.cat(case.outputs.cls_logits, dim=1).double()
    deltas = torch.cat(case.outputs.box_deltas, dim=1).double()
    iou_logits = torch.cat(case.outputs.iou_logits, dim=1).double()
    totals = [0.0, 0.0, 0.0, 0.0]
    for image in range(len(batch.boxes)):
        truth = batch.boxes[image][batch.valid[image]].double()
        labels = batch.labels[image][batch.valid[image]]
        state, owner = _assign(anchors, truth, case.anchor_valid[image], config)
        positive = state == 1
        target = torch.zeros_like(cls_logits[image])
        target[positive, labels[owner[positive]]] = 1.0
        p = cls_logits[image].sigmoid()
        right = torch.where(target == 1, p, 1 - p)
        log_right = -torch.nn.functional.softplus(torch.where(target == 1, -cls_logits[image], cls_logits[image]))
        weight = torch.where(target == 1, config.focal_alpha, 1 - config.focal_alpha)
        focal = -weight * (1 - right) ** config.focal_gamma * log_right
        totals[0] += float(focal[state >= 0].sum())
        near, wanted = anchors[positive], truth[owner[positive]]
        difference = (deltas[image][positive] - _encode(near, wanted)).abs()
        beta = config.smooth_l1_beta
        totals[1] += float(torch.where(difference < beta, difference**2 / (2 * beta), difference - beta / 2).sum())
        quality = _paired_iou(_decode(near, deltas[image][positive]), wanted)
        logits = iou_logits[image][positive]
        entropy = torch.nn.functional.softplus(logits) - quality * logits
        totals[2] += float(entropy.sum())
        totals[3] += max(int(positive.sum()), 1)
    return totals[0], totals[1], totals[2], totals[3]


def _assign(anchors: Tensor, truth: Tensor, valid: Tensor, config: LossConfig) -> tuple[Tensor, Tensor]:
    """State 1, 0, -1 and ground truth of every anchor, by MMDetection's rule."""
    overlaps = torch.stack([_iou(box, anchors) for box in truth]) * valid
    best, owner = overlaps.max(dim=0)
    state = torch.full_like(owner, -1)
    state[best < config.negative_iou] = 0
    state[(best >= config.positive_iou) & (best > 0)] = 1
    for number, row in enumerate(overlaps):
        # Equal but for rounding: the same IoU of mirrored anchors may differ in the last bit.
        claimed = (row >= row.max() - 1e-6) & (row > 0)
        state[claimed], owner[claimed] = 1, number
    state[~valid] = -1
    return state, owner


def _iou(box: Tensor, others: Tensor) -> Tensor:
    return _paired_iou(box.expand_as(others), others)


def _paired_iou(boxes: Tensor, others: Tensor) -> Tensor:
    first, second = torch.maximum(boxes[:, :2], others[:, :2]), torch.minimum(boxes[:, 2:], others[:, 2:])
    shared = (second - first).clamp(min=0).prod(dim=1)
    areas = [(b[:, 2:] - b[:, :2]).clamp(min=0).prod(dim=1) for b in (boxes, others)]
    return shared / (areas[0] + areas[1] - shared).clamp(min=1e-30)


def _decode(anchors: Tensor, deltas: Tensor) -> Tensor:
    sides = anchors[:, 2:] - anchors[:, :2]
    centres = anchors[:, :2] + sides / 2 + deltas[:, :2] * sides
    half = sides * deltas[:, 2:].clamp(-math.log(1000 / 16), math.log(1000 / 16)).exp() / 2
    return torch.cat([centres - half, centres + half], dim=1)


def _encode(anchors: Tensor, boxes: Tensor) -> Tensor:
    sides, wanted = anchors[:, 2:] - anchors[:, :2], boxes[:, 2:] - boxes[:, :2]
    shift = (boxes[:, :2] + wanted / 2) - (anchors[:, :2] + sides / 2)
    return torch.cat([shift / sides, (wanted / sides).log()], dim=1)
