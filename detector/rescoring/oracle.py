"""The headroom of localisation confidence: the true IoU in the predicted one's place.

An anchor's true IoU is that of its regressed, clipped box with the best ground-truth box of the image, of whatever
class; crowds do not count, difficult objects do (as in `evaluation.correlation.true_ious`). IoU does not change when
both axes are scaled, so that the resized frame serves as well as the original one, up to rounding.
"""

# B images, A anchors (A_l of level l), G ground-truth boxes

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from detector.boxes import clip_boxes, elementwise_iou
from detector.config import ScoringConfig
from detector.data.box_geometry import corners_from_xywh
from detector.data.samples import Dataset
from detector.models.box_coder import decode
from detector.models.postprocess import (
    Detections,
    best_logits,
    candidates_to_detections,
    gather_candidates,
    select_anchors,
)
from detector.models.retinanet import HeadOutputs


def truth_boxes(dataset: Dataset, image: int, resized: tuple[int, int]) -> Tensor:
    """(G, 4) float32 x1, y1, x2, y2 in the resized frame, `resized` being its height and width: all but the crowds,
    as annotated, unclipped; G may be 0."""
    rows = dataset.rows(image)
    xywh = dataset.boxes_xywh[rows][~dataset.is_crowd[rows]]
    vertical, horizontal = np.array(resized) / dataset.image_sizes[image]
    scale = np.array([horizontal, vertical, horizontal, vertical])
    return torch.from_numpy((corners_from_xywh(xywh) * scale).astype(np.float32))


def true_anchor_ious(
    outputs: HeadOutputs, anchors: Sequence[Tensor], image_sizes: Tensor, truth: Sequence[Tensor]
) -> list[Tensor]:
    """Per level (B, A_l) float32, 0 to 1; 0 without ground truth, NaN where a box is.

    Args:
        outputs, anchors, image_sizes: as for `postprocess`.
        truth: per image (G, 4), see `truth_boxes`.
    """
    per_level = []
    for level_anchors, deltas in zip(anchors, outputs.box_deltas, strict=True):
        boxes = clip_boxes(decode(level_anchors, deltas.float()), image_sizes)
        best = torch.zeros_like(boxes[..., 0])
        for image, of_image in enumerate(truth):
            for box in of_image.to(boxes.device):  # one at a time: 200,000 anchors by 60 boxes are 50 MB a matrix
                best[image] = torch.maximum(best[image], elementwise_iou(boxes[image], box))
        per_level.append(best)
    return per_level


def oracle_detections(
    outputs: HeadOutputs,
    anchors: Sequence[Tensor],
    anchor_valid: Tensor,
    image_sizes: Tensor,
    scoring: ScoringConfig,
    truth: Sequence[Tensor],
) -> list[Detections]:
    """What `postprocess` gives with the true IoU for the predicted one, in the choice of anchors and in the confidence.

    The detections' `ious` are the true ones. Arguments as `postprocess` and `true_anchor_ious`.
    """
    with torch.no_grad():
        ious = true_anchor_ious(outputs, anchors, image_sizes, truth)
        kept = select_anchors(best_logits(outputs), ious, anchor_valid, scoring)
        flat = torch.cat(ious, dim=1)
        return [
            candidates_to_detections(candidates, scoring, flat[image, candidates.anchor_index])
            for image, candidates in enumerate(gather_candidates(outputs, anchors, image_sizes, kept))
        ]
