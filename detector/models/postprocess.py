"""From the network's outputs to detections: score, top-k anchors a level, threshold, NMS, at most 100 boxes an image.

The order is MMDetection's: the combined score (Eq. 5) of every (anchor, class); the top-k *anchors* of a level by their
best score, all classes kept; then the threshold; then NMS; then the best detections. Equal scores are ordered by flat
anchor index (level, then place), then class, at every stage.

The order of equal scores needs that a pair's score depends on its logits alone, not on the tensor they stand in (see
`probability`), and never falls as the class logit rises.
"""

# B images, A anchors (A_l of level l), C classes, K candidates of an image, D detections of an image

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from detector.boxes import clip_boxes
from detector.config import ScoringConfig
from detector.models.box_coder import decode
from detector.models.confidence import combine_scores
from detector.models.detector import Detections, ScoringRow
from detector.models.heads import HeadOutputs
from detector.models.nms import best_pairs, rank_keys
from detector.models.oracle import true_anchor_ious

_GROUP = 8  # anchors of which the best one stands for all when the top-k is bounded
_ESTIMATE_ERROR = 1e-3  # of a logarithm of a score in float32, which errs by less than 1e-4 above -60
_ROUNDING = 1e-5  # of a logarithm of a score: what float32 factors and scores are rounded by, a hundred times over
_FEW_DIGITS = -80.0  # logarithm of a probability: below exp(-87) float32 has fewer digits, and then none
_FIRST_ROWS = 1024  # candidates whose classes are scored at first; enough for nearly all images of a trained detector


@dataclass(frozen=True)
class Candidates:
    """The anchors of one image that may become detections, with all their classes; K may be 0."""

    anchor_index: Tensor
    """(K,) int64 flat anchor index, strictly increasing."""
    boxes: Tensor
    """(K, 4) float32 x1, y1, x2, y2, resized frame, clipped to the image; NaN where the network's output was."""
    cls_logits: Tensor
    """(K, C) float32, no NaN."""
    iou_logits: Tensor | None
    """(K,) float32; None without an IoU head."""


def postprocess(
    outputs: HeadOutputs,
    anchors: Sequence[Tensor],
    anchor_valid: Tensor,
    image_sizes: Tensor,
    scoring: ScoringConfig,
) -> list[Detections]:
    """Detections of a batch, one entry an image, in the resized frame; equal scores by anchor, then class ascending.

    An anchor with a NaN among its logits or in its box gives no detection.

    Args:
        outputs: of the network, any float dtype; computed on in float32 and above.
        anchors: per level (A_l, 4) float32, resized frame.
        anchor_valid: (B, A) bool; False for anchors wholly in the padding.
        image_sizes: (B, 2) height and width of the images without padding, resized frame.
        scoring: alpha, top-k, thresholds.
    """
    return postprocess_rows(outputs, anchors, anchor_valid, image_sizes, [ScoringRow(scoring)])[0]


def postprocess_rows(
    outputs: HeadOutputs,
    anchors: Sequence[Tensor],
    anchor_valid: Tensor,
    image_sizes: Tensor,
    rows: Sequence[ScoringRow],
    truth: Sequence[Tensor] | None = None,
) -> list[list[Detections]]:
    """Detections of a batch under several rows, by [row][image]; those of a row are what `postprocess` gives for it.

    The rows share the sigmoid of the IoU logits, the best logits and the true IoUs; everything else is done for each.
    Other arguments as `postprocess`.

    Args:
        truth: per image (G, 4) float32 ground-truth boxes, resized frame; required for oracle rows, whose detections
            have the true IoU in `ious`. Raise ValueError where it is absent.
    """
    with torch.no_grad():
        best = best_logits(outputs)
        predicted = None if outputs.iou_logits is None else [probability(logits) for logits in outputs.iou_logits]
        true: list[Tensor] | None = None
        if any(row.oracle for row in rows):
            if truth is None:
                raise ValueError("an oracle row needs the ground truth")
            true = true_anchor_ious(outputs.box_deltas, anchors, image_sizes, truth)
        found = []
        for row in rows:
            ious = true if row.oracle else predicted
            kept = select_anchors(best, ious, anchor_valid, row.scoring)
            given = torch.cat(true, dim=1) if row.oracle and true is not None else None
            found.append(
                [
                    candidates_to_detections(
                        candidates, row.scoring, None if given is None else given[image, candidates.anchor_index]
                    )
                    for image, candidates in enumerate(gather_candidates(outputs, anchors, image_sizes, kept))
                ]
            )
        return found


def probability(logits: Tensor) -> Tensor:
    """Sigmoid, float32, equal for equal logits wherever they stand.

    PyTorch's float32 sigmoid (as its power) differs in the last bit between the vectorised body and the rest of a
    tensor, which would order equal logits by their place in memory. From float64, rounding hides such differences.
    """
    return logits.double().sigmoid().float()


def best_logits(outputs: HeadOutputs) -> list[Tensor]:
    """Per level (B, A_l) float32, each anchor's highest class logit; NaN where one of them is NaN.

    The combined score rises with p, so the best class of an anchor is the same whatever the alpha.
    """
    return [logits.amax(dim=-1).float() for logits in outputs.cls_logits]


def select_anchors(
    best: Sequence[Tensor], ious: Sequence[Tensor] | None, anchor_valid: Tensor, scoring: ScoringConfig
) -> Tensor:
    """Choose the `scoring.top_k` anchors of each level by the score of their best class.

    Args:
        best: per level (B, A_l), see `best_logits`; NaN excludes the anchor.
        ious: per level (B, A_l) predicted IoU, 0 to 1; None without an IoU head.
        anchor_valid: (B, A) bool, anchors that may be taken.

    Returns:
        (B, A) bool, at most `top_k` True in each image and level; among equal scores the lower anchor index is taken.
    """
    kept = []
    for level, valid in enumerate(anchor_valid.split([logits.shape[1] for logits in best], dim=1)):
        num_anchors = valid.shape[1]
        of_level = None if ious is None else ious[level]
        if num_anchors <= scoring.top_k:
            valid = valid & ~best[level].isnan()
        elif valid.device.type == "cpu":
            ious_of = [None] * len(valid) if of_level is None else list(of_level)
            of_images = zip(best[level], ious_of, valid, strict=True)
            valid = torch.stack([_top_of_image(*of_image, scoring) for of_image in of_images])
        else:
            scores = _best_class_scores(best[level], of_level, scoring)
            valid = valid & ~(scores.isnan() | best[level].isnan())
            keys = rank_keys(scores, torch.arange(num_anchors, device=scores.device)).masked_fill(~valid, -1)
            lowest = keys.topk(scoring.top_k, sorted=False).values.amin(dim=1, keepdim=True)
            valid = valid & (keys >= lowest)
        kept.append(valid)
    return torch.cat(kept, dim=1)


def _top_of_image(best: Tensor, ious: Tensor | None, valid: Tensor, scoring: ScoringConfig) -> Tensor:
    """(A_l,) bool, the top-k of one level of one image on a CPU: exact scores for those alone that may be among it."""
    place = _nonzero(_may_be_at_the_top(best, ious, valid, scoring))
    scores = _best_class_scores(best[place], None if ious is None else ious[place], scoring)
    keys = rank_keys(scores, place).masked_fill_(scores.isnan() | best[place].isnan(), -1)
    if len(keys) > scoring.top_k:
        place = place[(keys >= keys.topk(scoring.top_k, sorted=False).values.amin()) & (keys >= 0)]
    else:
        place = place[keys >= 0]
    return torch.zeros_like(valid).index_fill_(0, place, True)


def _may_be_at_the_top(best: Tensor, ious: Tensor | None, valid: Tensor, scoring: ScoringConfig) -> Tensor:
    """(A_l,) bool: all but anchors that are surely not among the top-k, by the logarithm of the score in float32.

    The k-th largest of the maxima of groups of anchors is a bound from below on the k-th largest estimate, and costs
    an eighth of it. An anchor below it by twice the estimate's error cannot be among the top-k.
    """
    weight_p, weight_q = _exponents(scoring, ious is not None)
    groups = len(best) // _GROUP
    if groups < scoring.top_k:
        return valid
    # A factor of weight 0 has no say, not even where it is 0 and its logarithm infinite; but NaN has.
    estimate = best * 0.0 if weight_p == 0 else functional.logsigmoid(best).mul_(weight_p)
    if ious is not None and weight_q > 0:
        estimate.add_(ious.log(), alpha=weight_q)
    if not bool(valid.all()):
        estimate.masked_fill_(~valid, -torch.inf)
    # A group's anchors lie far apart, as neighbours are good together. A NaN among them leaves no bound.
    highest = estimate[: groups * _GROUP].view(_GROUP, groups).amax(dim=0)
    lowest = highest.topk(scoring.top_k, sorted=False).values.amin()
    # No estimate tells how factors that float32 has few digits for were rounded.
    if not bool(lowest > -60 * min(weight for weight in (weight_p, weight_q) if weight > 0)):
        return valid
    return estimate >= lowest - 2 * _ESTIMATE_ERROR


def _exponents(scoring: ScoringConfig, any_iou: bool) -> tuple[float, float]:
    """Of p and of the IoU in the score."""
    if not any_iou or scoring.confidence == "class":
        return 1.0, 0.0
    return (1.0, 1.0) if scoring.confidence == "none" else (scoring.alpha, 1.0 - scoring.alpha)


def gather_candidates(
    outputs: HeadOutputs, anchors: Sequence[Tensor], image_sizes: Tensor, kept: Tensor
) -> list[Candidates]:
    """The candidates that the mask `kept` (B, A) names, one entry an image; other arguments as `postprocess`.

    Only these are decoded.
    """
    per_level = []
    offset = 0
    for level, of_level in enumerate(kept.split([len(level_anchors) for level_anchors in anchors], dim=1)):
        row = _nonzero(of_level.flatten())  # one index over images and anchors is gathered in half the time
        image, place = row // of_level.shape[1], row % of_level.shape[1]
        columns = [
            image,
            place + offset,
            anchors[level].index_select(0, place),
            outputs.box_deltas[level].flatten(0, 1).index_select(0, row).float(),
            outputs.cls_logits[level].flatten(0, 1).index_select(0, row).float(),
        ]
        if outputs.iou_logits is not None:
            columns.append(outputs.iou_logits[level].flatten().index_select(0, row).float())
        per_level.append(columns)
        offset += of_level.shape[1]
    image, anchor_index, of_anchors, deltas, *logits = (torch.cat(column) for column in zip(*per_level, strict=True))
    boxes = clip_boxes(decode(of_anchors, deltas).unsqueeze(1), image_sizes[image]).squeeze(1)
    whole = (anchor_index, boxes, *logits)
    no_ious = [None] if len(logits) == 1 else []
    if len(kept) == 1:  # in order already
        return [Candidates(*whole, *no_ious)]
    order = image.argsort(stable=True)  # within an image still by anchor
    counts = image.bincount(minlength=len(kept)).tolist()
    split = (column[order].split(counts) for column in whole)
    return [Candidates(*of_image, *no_ious) for of_image in zip(*split, strict=True)]


def candidates_to_detections(candidates: Candidates, scoring: ScoringConfig, ious: Tensor | None = None) -> Detections:
    """Score one image's candidates and keep the best detections.

    Args:
        candidates: the top-k anchors of each level under `scoring`, by the same IoU.
        ious: (K,) float32, 0 to 1, takes the place of the predicted IoU: the true one, for the oracle.
    """
    with torch.no_grad():
        if ious is None and candidates.iou_logits is not None:
            ious = probability(candidates.iou_logits)
        best = candidates.cls_logits.amax(dim=-1)
        rows = _nonzero(~candidates.boxes.isnan().any(dim=1))
        best_scores = _best_class_scores(best[rows], None if ious is None else ious[rows], scoring).nan_to_num(nan=-1.0)
        # The pairs above some floor are all with the anchors whose best pair is: where these fill the detections, the
        # other pairs, most of all, need not even be scored.
        floor = best_scores.topk(min(_FIRST_ROWS, len(rows))).values.amin().item() if len(rows) > 0 else 0.0
        if floor > scoring.score_threshold:
            detections = _detect(candidates, rows[best_scores >= floor], ious, scoring, floor)
            if len(detections.scores) == scoring.max_detections:
                return detections
        rows = rows[best_scores > scoring.score_threshold]
        return _detect(candidates, rows, ious, scoring, scoring.score_threshold)


def _detect(
    candidates: Candidates, rows: Tensor, ious: Tensor | None, scoring: ScoringConfig, score_threshold: float
) -> Detections:
    """The detections that score above the threshold among the candidates `rows`, which are int64 and increasing."""
    boxes, cls_logits = candidates.boxes[rows], candidates.cls_logits[rows]
    ious = None if ious is None else ious[rows]
    num_classes = cls_logits.shape[1]
    # Float64 sigmoids and powers are taken of those pairs alone that may pass.
    pairs = _nonzero(_may_pass(cls_logits, ious, scoring, score_threshold).flatten())
    class_scores = probability(cls_logits.flatten()[pairs])
    of_pairs = None if ious is None else ious[pairs // num_classes]
    scores = combine_scores(class_scores.unsqueeze(1), of_pairs, scoring).squeeze(1)
    passing = scores > score_threshold
    pairs, class_scores, scores = pairs[passing], class_scores[passing], scores[passing]
    kept = best_pairs(boxes, pairs, scores, num_classes, iou_threshold=scoring.nms_iou, limit=scoring.max_detections)
    place = pairs[kept] // num_classes
    return Detections(
        boxes=boxes[place],
        scores=scores[kept],
        labels=pairs[kept] % num_classes,
        class_scores=class_scores[kept],
        ious=torch.full_like(boxes[place, 0], torch.nan) if ious is None else ious[place],
        anchor_index=candidates.anchor_index[rows[place]],
    )


def _may_pass(cls_logits: Tensor, ious: Tensor | None, scoring: ScoringConfig, score_threshold: float) -> Tensor:
    """(K, C) bool: all but pairs whose score is surely not above the threshold, however it is rounded."""
    weight_p, weight_q = _exponents(scoring, ious is not None)
    if weight_p == 0 or score_threshold < torch.finfo(torch.float32).tiny:
        return torch.ones_like(cls_logits, dtype=torch.bool)
    log_p = cls_logits.new_full((1,), math.log(score_threshold) - _ROUNDING, dtype=torch.float64)
    if ious is not None and weight_q > 0:
        log_p = log_p - weight_q * ious.double().log()
    log_p = (log_p / weight_p).clamp(max=0.0)
    least = log_p - torch.log1p(-log_p.exp())  # the logit of that probability
    # Where a float32 probability has fewer digits, this bound is none.
    least = torch.where(log_p > _FEW_DIGITS, least, -torch.inf).float()
    return cls_logits >= least.unsqueeze(1)


def _nonzero(mask: Tensor) -> Tensor:
    """Indices, int64, of what is True in a (N,) mask; on a CPU by NumPy, in a tenth of PyTorch's time."""
    if mask.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return mask.nonzero()[:, 0]


def _best_class_scores(best: Tensor, ious: Tensor | None, scoring: ScoringConfig) -> Tensor:
    """Combined score of the best class, shaped as its logits `best`: the score rises with p at every alpha."""
    return combine_scores(probability(best).unsqueeze(-1), ious, scoring).squeeze(-1)
