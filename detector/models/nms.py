"""Exact greedy NMS, class by class, that stops once enough boxes are kept, and the strict ranking it walks along.

The number of pairs may be in the hundreds of thousands (every class of every kept anchor passes a small threshold when
alpha is small), the number of kept boxes is at most a hundred or so. So pairs are taken in blocks from the top: each
block is tested against what is already kept, then its head against itself, what is left of it against what was kept of
the head, and so on; pairs further down are never looked at. Pairs below the last kept one cannot change what is above
them, so the result is that of NMS over all pairs cut to `limit`.
"""

# K boxes (anchors), C classes, P of the K * C pairs, each at position anchor * C + class, N, M pairs of two blocks

from collections.abc import Iterator

import torch
from torch import Tensor

from detector.boxes import pairwise_iou

_HEAD = 256  # pairs tested against one another: IoU matrices of 256 kB, which stay in the cache of a core
_BLOCK = 1024  # pairs tested against the kept ones at a time, and ranked at first; enough for most images
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


def best_pairs(
    boxes: Tensor, pairs: Tensor, scores: Tensor, num_classes: int, *, iou_threshold: float, limit: int
) -> Tensor:
    """The first `limit` pairs that greedy NMS keeps, each class on its own.

    A pair is dropped if an IoU with a kept pair of the same class is above `iou_threshold`; the IoU is computed on the
    boxes as they are, never on boxes moved apart by class, which rounds them. On a CPU this keeps the very boxes that
    `torchvision.ops.nms` keeps when run class by class.

    Args:
        boxes: (K, 4) float32, x1, y1, x2, y2.
        pairs: (P,) int64 positions anchor * C + class, strictly increasing.
        scores: (P,) float32, at least 0 and not NaN.
        num_classes: C.
        iou_threshold: IoU from which on, exclusively, the lower-scored box is dropped.
        limit: at least 1.

    Returns:
        (D,) int64 indices into `pairs`, D <= limit, by score descending, then position ascending. Memory is O(P).
    """
    kept = torch.empty(0, dtype=torch.int64, device=boxes.device)

    def dropped(by: Tensor, block: Tensor) -> Tensor:
        return _suppresses(boxes, pairs[by], pairs[block], num_classes, iou_threshold).any(dim=0)

    for block in _ranked_blocks(scores):
        if len(kept) > 0:
            block = block[~dropped(kept, block)]
        while len(block) > 0:
            head, block = block[:_HEAD], block[_HEAD:]
            head = head[_greedy(_suppresses(boxes, pairs[head], pairs[head], num_classes, iou_threshold).triu(1))]
            kept = torch.cat([kept, head])
            if len(kept) >= limit:
                return kept[:limit]
            block = block[~dropped(head, block)]
    return kept


def _ranked_blocks(scores: Tensor) -> Iterator[Tensor]:
    """Indices of the scores, best first, in blocks; ranks no further than it is asked to."""
    keys = rank_keys(scores, torch.arange(len(scores), device=scores.device))
    size = _BLOCK
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
    # How many drop a box, as a product: small whole numbers, exact, and a tenth of the time of any() on a CPU.
    weights = suppresses.float()
    kept = torch.ones_like(weights[:, 0], dtype=torch.bool)
    while True:
        survivors = kept.float() @ weights == 0
        if torch.equal(survivors, kept):
            return kept
        kept = survivors
