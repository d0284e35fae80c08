"""Which (anchor, class) pairs are detections under at least one of several scorings of the same outputs.

A *row* is one way to score (a row of the paper's Table 3, say). For every row `survivors` finds the pairs that
`postprocess` under it would return, and keeps their union, each with its logits and the rows that it survives under.
That is all that is needed to have any of these rows again, exactly: nothing of top-k, threshold and NMS is left to do
but to pick a row's pairs, and their confidences follow from the logits. It is a thousand times less than all classes of
all anchors that some row's top-k keeps (half a million pairs an image at 800 px with 80 classes, nearly all of which
pass the threshold of 0.05 at small alpha).

Post-processing once a row costs as much as a small network's forward pass, so the rows share their work: which boxes
overlap is found out once for all rows and classes. It is exact because whether greedy NMS keeps a pair depends on
higher-ranked pairs alone. So NMS over the first pairs of a ranking keeps what NMS over all keeps among them, and once
that is as many as the limit on detections, or once these are all pairs above the threshold, it is the answer. The first
pairs are found by an estimate of the confidence that costs no powers: the exact confidence of a pair whose estimate is
at most some cut is surely below some floor, so that all pairs above the floor are among the others. A row whose start
turns out too short takes a longer one.
"""

# B images, A anchors (A_l of level l), C classes, R rows, K candidates of an image, S survivors of an image

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detector.config import ScoringConfig
from detector.models.confidence import combine_scores
from detector.models.nms import key_positions, rank_keys
from detector.models.postprocess import (
    Candidates,
    best_logits,
    gather_candidates,
    probability,
    select_anchors,
)
from detector.models.retinanet import HeadOutputs
from detector.rescoring.oracle import true_anchor_ious

_FIRST_PAIRS = 3072  # to begin a row with: enough for most images
_SAMPLE = 2048  # pairs from which it is told how high those stand
_SMALLEST_FACTOR = 1e-30  # stands for all smaller probabilities in the estimate of a score: it may only be too high
_ESTIMATE_ERROR = 1e-3  # of a logarithm; float32 errs by less than 1e-4 on sums of two that are above -70
_SMALLEST_UNION = np.finfo(np.float32).tiny  # as in `boxes`


@dataclass(frozen=True)
class ScoringRow:
    """One way to turn outputs into detections."""

    scoring: ScoringConfig
    oracle: bool = False
    """The true IoU takes the predicted one's place, in the choice of anchors and in the confidence."""


@dataclass(frozen=True)
class Survivors:
    """The pairs of one image that are detections under some row, by anchor, then class; S may be 0. On the CPU."""

    anchor_index: Tensor
    """(S,) int64 flat anchor index."""
    level: Tensor
    """(S,) int64, 0 for the finest."""
    labels: Tensor
    """(S,) int64, 0 to C - 1."""
    boxes: Tensor
    """(S, 4) float32 x1, y1, x2, y2, resized frame, clipped to the image."""
    cls_logits: Tensor
    """(S,) float32 of the pair's class."""
    iou_logits: Tensor | None
    """(S,) float32; None without an IoU head."""
    true_ious: Tensor | None
    """(S,) float32, see `oracle.true_anchor_ious`; None where there is no oracle row."""
    rows: Tensor
    """(S,) int64, bit r is set where the pair is a detection under row r; at least one bit is."""


def survivors(
    outputs: HeadOutputs,
    anchors: Sequence[Tensor],
    anchor_valid: Tensor,
    image_sizes: Tensor,
    rows: Sequence[ScoringRow],
    truth: Sequence[Tensor] | None = None,
) -> list[Survivors]:
    """The union over `rows` (at most 63) of the detections of a batch, one entry an image.

    Equal to what `postprocess` (for an oracle row `oracle_detections`) finds row by row: the same pairs bit for bit
    where the outputs are on the CPU; from a GPU they are copied once their anchors are chosen.

    Args:
        outputs, anchors, anchor_valid, image_sizes: as for `postprocess`.
        truth: per image (G, 4), see `oracle.truth_boxes`; needed for oracle rows only.
    """
    with torch.no_grad():
        best = best_logits(outputs)
        ious = None if outputs.iou_logits is None else [probability(logits) for logits in outputs.iou_logits]
        oracle = None
        if any(row.oracle for row in rows):
            if truth is None:
                raise ValueError("an oracle row needs the ground truth")
            oracle = true_anchor_ious(outputs, anchors, image_sizes, truth)
        kept = torch.stack(
            [select_anchors(best, oracle if row.oracle else ious, anchor_valid, row.scoring) for row in rows]
        )
        found = []
        for image, candidates in enumerate(gather_candidates(outputs, anchors, image_sizes, kept.any(dim=0))):
            index = candidates.anchor_index
            true_ious = None if oracle is None else torch.cat([of_level[image] for of_level in oracle])[index].cpu()
            found.append(_of_image(_to_cpu(candidates), kept[:, image, index].cpu(), true_ious, rows))
        return found


def _to_cpu(candidates: Candidates) -> Candidates:
    return Candidates(
        anchor_index=candidates.anchor_index.cpu(),
        level=candidates.level.cpu(),
        boxes=candidates.boxes.cpu(),
        cls_logits=candidates.cls_logits.cpu(),
        iou_logits=None if candidates.iou_logits is None else candidates.iou_logits.cpu(),
    )


def _of_image(candidates: Candidates, kept: Tensor, true_ious: Tensor | None, rows: Sequence[ScoringRow]) -> Survivors:
    """`kept` (R, K) bool: is the candidate in the top-k of its level under the row?"""
    num_classes = candidates.cls_logits.shape[1]
    kept = kept & ~candidates.boxes.isnan().any(dim=1)
    predicted = None if candidates.iou_logits is None else probability(candidates.iou_logits)
    ious = [true_ious if row.oracle else predicted for row in rows]
    pairs: dict[int, NDArray[np.int64]] = {}
    number = _FIRST_PAIRS
    while len(pairs) < len(rows):
        left = [r for r in range(len(rows)) if r not in pairs]
        scorings = [rows[r].scoring for r in left]
        found = _from_the_first(candidates, kept.numpy()[left], [ious[r] for r in left], scorings, number)
        pairs |= {r: of_row for r, of_row in zip(left, found, strict=True) if of_row is not None}
        number *= 4
    union, place = np.unique(np.concatenate(list(pairs.values())), return_inverse=True)
    bits = np.zeros(len(union), dtype=np.int64)
    # A pair occurs at most once a row: adding its bits is setting them.
    np.add.at(bits, place, np.concatenate([np.full(len(of_row), 1 << r) for r, of_row in pairs.items()]))
    whole = torch.from_numpy(union)
    anchor = whole // num_classes
    return Survivors(
        anchor_index=candidates.anchor_index[anchor],
        level=candidates.level[anchor],
        labels=whole % num_classes,
        boxes=candidates.boxes[anchor],
        cls_logits=candidates.cls_logits.flatten()[whole],
        iou_logits=None if candidates.iou_logits is None else candidates.iou_logits[anchor],
        true_ious=None if true_ious is None else true_ious[anchor],
        rows=torch.from_numpy(bits),
    )


def _from_the_first(
    candidates: Candidates,
    kept: NDArray[np.bool_],
    ious: Sequence[Tensor | None],
    scorings: Sequence[ScoringConfig],
    number: int,
) -> list[NDArray[np.int64] | None]:
    """Each row's detections as positions candidate * C + class, from about `number` pairs; None where too few."""
    size, num_classes = candidates.cls_logits.numel(), candidates.cls_logits.shape[1]
    if size == 0:
        return [np.zeros(0, dtype=np.int64) for _ in scorings]
    log_ious = [None if iou is None else _log(iou) for iou in ious]
    best = _log(probability(candidates.cls_logits.amax(dim=1)))
    sample = np.random.default_rng(0).integers(0, size, _SAMPLE)
    anchor = sample // num_classes
    sampled = _log(probability(candidates.cls_logits.flatten()[torch.from_numpy(sample)]))
    rank = _SAMPLE - 1 - number * _SAMPLE // size
    cuts, floors = [], []
    near = np.zeros(len(best), dtype=bool)
    for of_row, log_iou, scoring in zip(kept, log_ious, scorings, strict=True):
        # Of pairs whose estimate is below the cut none scores above the floor: by the threshold, or by the sample.
        floor = scoring.score_threshold
        cut = np.log(floor) - _ESTIMATE_ERROR if floor > 0 else -np.inf
        if rank >= 0:
            estimate = _estimate(sampled, None if log_iou is None else log_iou[anchor], scoring)
            higher = np.partition(np.where(of_row[anchor], estimate, -np.inf), rank)[rank]
            if higher > cut:
                cut, floor = higher, max(floor, float(np.exp(higher + _ESTIMATE_ERROR)))
        cuts.append(cut)
        floors.append(floor)
        near |= of_row & ~(_estimate(best, log_iou, scoring) <= cut)  # NaN stays, and is dropped later on
    places = np.flatnonzero(near)
    chosen = torch.from_numpy(places)
    class_probability = probability(candidates.cls_logits[chosen])
    log_probability = _log(class_probability)
    overlaps = {t: _Overlaps(candidates.boxes[chosen], t) for t in {scoring.nms_iou for scoring in scorings}}
    found: list[NDArray[np.int64] | None] = []
    for of_row, iou, log_iou, scoring, cut, floor in zip(kept, ious, log_ious, scorings, cuts, floors, strict=True):
        estimate = _estimate(log_probability, None if log_iou is None else log_iou[places, None], scoring)
        first = torch.from_numpy(np.flatnonzero(of_row[places, None] & ~(estimate <= cut)))
        first_iou = None if iou is None else iou[chosen[first // num_classes]]
        scores = combine_scores(class_probability.flatten()[first, None], first_iou, scoring)[:, 0]
        keys = rank_keys(scores.nan_to_num_(nan=0.0), first).numpy()
        keys.sort()  # NumPy's sort of integers is ten times as fast as PyTorch's; all keys differ
        ranked = key_positions(torch.from_numpy(keys[::-1][: int((scores > floor).sum())].copy())).numpy()
        pairs = _greedy_nms(ranked, num_classes, overlaps[scoring.nms_iou], scoring.max_detections)
        enough = floor == scoring.score_threshold or len(pairs) == scoring.max_detections
        found.append(places[pairs // num_classes] * num_classes + pairs % num_classes if enough else None)
    return found


def _log(factor: Tensor) -> NDArray[np.float32]:
    return np.log(np.maximum(factor.numpy(), _SMALLEST_FACTOR))


def _estimate(
    log_probability: NDArray[np.float32], log_iou: NDArray[np.float32] | None, scoring: ScoringConfig
) -> NDArray[np.float32]:
    """The logarithm of confidences, of the shape that both broadcast to: too low by `_ESTIMATE_ERROR` at most."""
    if log_iou is None or scoring.confidence == "class":
        return log_probability
    if scoring.confidence == "none":
        return log_probability + log_iou
    alpha = np.float32(scoring.alpha)
    return log_probability * alpha + log_iou * (1 - alpha)


class _Overlaps:
    """Which candidates drop which in NMS, found out when one is kept: it is the same for all rows and classes.

    Operation for operation `boxes.elementwise_iou`, with the same bits, in NumPy: one box against a few thousand is so
    little that PyTorch would spend most of the time on its calls.
    """

    def __init__(self, boxes: Tensor, threshold: float) -> None:
        self.num_candidates = len(boxes)
        corners = boxes.T.contiguous().numpy()
        self._low, self._high = corners[:2], corners[2:]
        width, height = (self._high - self._low).clip(min=0)
        self._area = width * height
        # The largest float32 that is not above the threshold: `best_pairs` compares in float64.
        nearest = np.float32(threshold)
        self._threshold = nearest if float(nearest) <= threshold else np.nextafter(nearest, np.float32(-1))
        self._known: dict[int, NDArray[np.bool_]] = {}

    def of(self, place: int) -> NDArray[np.bool_]:
        """(K,) is a candidate's IoU with the one at `place` above the threshold?"""
        known = self._known.get(place)
        if known is None:
            one = slice(place, place + 1)
            sides = np.minimum(self._high, self._high[:, one]) - np.maximum(self._low, self._low[:, one])
            np.maximum(sides, 0, out=sides)
            intersection = sides[0] * sides[1]
            union = self._area[one] + self._area - intersection
            known = self._known[place] = intersection / np.maximum(union, _SMALLEST_UNION) > self._threshold
        return known


def _greedy_nms(ranked: NDArray[np.int64], num_classes: int, overlaps: _Overlaps, limit: int) -> NDArray[np.int64]:
    """The first `limit` of the ranked pairs (positions candidate * C + class) that NMS keeps, each class on its own."""
    count = overlaps.num_candidates
    dropped = np.zeros((num_classes, count), dtype=bool)
    of_class, flat = list(dropped), dropped.ravel()
    pairs = ranked % num_classes * count + ranked // num_classes
    kept: list[int] = []
    begin, length = 0, limit
    while begin < len(pairs) and len(kept) < limit:
        block = pairs[begin : begin + length]
        begin, length = begin + length, 2 * length
        for pair in block[~flat[block]].tolist():  # soon most are dropped before their turn: no loop sees them
            if not flat[pair]:
                kept.append(pair)
                label, place = divmod(pair, count)
                of_class[label] |= overlaps.of(place)
                if len(kept) == limit:
                    break
    labels, places = np.divmod(np.array(kept, dtype=np.int64), max(count, 1))
    return places * num_classes + labels
