"""Exact greedy NMS, class by class, that stops once enough boxes are kept, and the strict ranking it walks along.

The number of pairs may be in the hundreds of thousands (every class of every kept anchor passes a small threshold when
alpha is small), the number of kept boxes is at most a hundred or so. So pairs are taken in blocks from the top: each
block is tested against what is already kept, then against itself, and the rest is never looked at. Pairs below the
last kept one cannot change what is above them, so the result is that of NMS over all pairs cut to `limit`.
"""

# K boxes (anchors), C classes, P = K * C pairs at position anchor * C + class, N, M boxes of two blocks

from collections.abc import Iterator

import torch
from torch import Tensor

from detector.boxes import pairwise_iou

_BLOCK = 256  # largest IoU matrix is _BLOCK x _BLOCK: 256 kB, which stays in the cache of a core
_FIRST = 1024  # pairs ranked at first; enough for most images of a trained detector
_GROWTH = 4  # each further ranking takes this many times more, so that there are few passes over the pairs
_LOW_32_BITS = 0xFFFFFFFF


def rank_keys(scores: Tensor, positions: Tensor) -> Tensor:
    """Keys whose descending order is (score descending, position ascending), without ties.

    `torch.topk` and `torch.sort` leave the order of equal scores open; among these keys no two are equal.

    Args:
        scores: (..., P) float32, at least 0 and not NaN.
        positions: int64 below 2^32, broadcast against `scores`.

    Returns:
        (..., P) int64, at least 0. `key_positions` gives the positions back.
    """
    # Floats of at least 0 are ordered as their bit patterns read as integers.
    return (scores.view(torch.int32).to(torch.int64) << 32) | (positions ^ _LOW_32_BITS)


def key_positions(keys: Tensor) -> Tensor:
    """The positions that `rank_keys` was given: int64, shaped as `keys`."""
    return (keys & _LOW_32_BITS) ^ _LOW_32_BITS


def best_pairs(boxes: Tensor, scores: Tensor, *, score_threshold: float, iou_threshold: float, limit: int) -> Tensor:
    """The first `limit` pairs that greedy NMS keeps, each class on its own.

    A pair is dropped if an IoU with a kept pair of the same class is above `iou_threshold`; the IoU is computed on the
    boxes as they are, never on boxes moved apart by class, which rounds them. On a CPU this keeps the very boxes that
    `torchvision.ops.nms` keeps when run class by class.

    Args:
        boxes: (K, 4) float32, x1, y1, x2, y2.
        scores: (K, C) float32, at least 0; NaN never passes the threshold.
        score_threshold: pairs must score above it.
        iou_threshold: IoU from which on, exclusively, the lower-scored box is dropped.
        limit: at least 1.

    Returns:
        (D,) int64 positions anchor * C + class, D <= limit, by score descending, then position ascending. Empty where
        nothing passes the threshold. Memory is O(K C) whatever passes.
    """
    num_classes = scores.shape[1]
    kept = torch.empty(0, dtype=torch.int64, device=boxes.device)
    for block in _ranked_blocks(scores, score_threshold):
        block = block[~_suppresses(boxes, kept, block, num_classes, iou_threshold).any(dim=0)]
        block = block[_greedy(_suppresses(boxes, block, block, num_classes, iou_threshold).triu(diagonal=1))]
        kept = torch.cat([kept, block])[:limit]
        if len(kept) == limit:
            break
    return kept


def _ranked_blocks(scores: Tensor, threshold: float) -> Iterator[Tensor]:
    """Positions of the scores above the threshold, best first, in blocks; ranks no further than it is asked to."""
    flat = scores.flatten()
    positions = (flat > threshold).nonzero()[:, 0]
    keys = rank_keys(flat[positions], positions)
    size = _FIRST
    while len(keys) > 0:
        top = keys.topk(min(size, len(keys))).values
        yield from key_positions(top).split(_BLOCK)
        keys = keys[keys < top[-1]]
        size *= _GROWTH


def _suppresses(boxes: Tensor, first: Tensor, second: Tensor, num_classes: int, threshold: float) -> Tensor:
    """(N, M) bool: does pair `first[n]` drop pair `second[m]` if it is kept and ranks higher?"""
    same_class = (first % num_classes)[:, None] == (second % num_classes)[None, :]
    ious = pairwise_iou(boxes[first // num_classes], boxes[second // num_classes])
    # In float64, as torchvision compares: float32(0.6) is above 0.6.
    return same_class & (ious.double() > threshold)


def _greedy(suppresses: Tensor) -> Tensor:
    """(N,) bool, which boxes greedy NMS keeps, from the strictly upper triangular (N, N) matrix of who drops whom.

    Iterates "kept = dropped by none that is kept". After n rounds the first n boxes are settled, and so is every box
    whose chain of suppressors is shorter than n: a handful of rounds in practice, and no loop over boxes.
    """
    kept = torch.ones(len(suppresses), dtype=torch.bool, device=suppresses.device)
    while True:
        survivors = ~(suppresses & kept[:, None]).any(dim=0)
        if torch.equal(survivors, kept):
            return kept
        kept = survivors
