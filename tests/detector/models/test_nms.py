"""Greedy NMS: hand-computed cases, a plain loop as reference, blocks, and bounded memory."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from detector.models import nms
from detector.models.nms import best_pairs, key_positions, rank_keys


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tensors are small here: threads only wait for each other, badly where cores are shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class LargestTensor(TorchDispatchMode):
    """Records the size of the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.num_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else [result]:
            if isinstance(value, torch.Tensor):
                self.num_bytes = max(self.num_bytes, value.numel() * value.element_size())
        return result


def plain_nms(boxes: Tensor, scores: Tensor, score_threshold: float, iou_threshold: float, limit: int) -> list[int]:
    """The definition, one pair at a time."""
    num_classes = scores.shape[1]
    box_values, flat = boxes.numpy(), scores.flatten().numpy()
    passing = [pair for pair in range(len(flat)) if flat[pair] > np.float32(score_threshold)]
    kept: list[int] = []
    for pair in sorted(passing, key=lambda pair: (-flat[pair], pair)):
        anchor, label = divmod(pair, num_classes)
        if not any(
            label == other % num_classes
            and plain_iou(box_values[anchor], box_values[other // num_classes]) > iou_threshold
            for other in kept
        ):
            kept.append(pair)
    return kept[:limit]


def plain_iou(a: np.ndarray, b: np.ndarray) -> float:
    width = max(min(a[2], b[2]) - max(a[0], b[0]), np.float32(0))
    height = max(min(a[3], b[3]) - max(a[1], b[1]), np.float32(0))
    intersection = width * height
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - intersection
    return float(intersection / union) if union > 0 else 0.0


def random_boxes(generator: torch.Generator, count: int, size: float = 40.0, whole: bool = False) -> Tensor:
    corner = torch.rand(count, 2, generator=generator) * size
    boxes = torch.cat([corner, corner + torch.rand(count, 2, generator=generator) * size * 0.5], dim=1)
    return boxes.round() if whole else boxes


def kept(
    boxes: Any, scores: Any, *, score_threshold: float = 0.05, iou_threshold: float = 0.5, limit: int = 100
) -> list[int]:
    scores = torch.as_tensor(scores, dtype=torch.float32)
    pairs = (scores.flatten() > score_threshold).nonzero()[:, 0]
    found = best_pairs(
        torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        pairs,
        scores.flatten()[pairs],
        scores.shape[1],
        iou_threshold=iou_threshold,
        limit=limit,
    )
    return pairs[found].tolist()


def test_rank_keys_order_by_score_then_position() -> None:
    scores = torch.tensor([0.5, 1.0, 0.0, 0.5, 1e-45, 1.0])
    keys = rank_keys(scores, torch.arange(6))
    assert keys.argsort(descending=True).tolist() == [1, 5, 0, 3, 4, 2]
    assert key_positions(keys).tolist() == list(range(6))
    assert (keys >= 0).all()


def test_rank_keys_take_any_position_below_two_to_the_32() -> None:
    positions = torch.tensor([0, 2**31 - 1, 2**31, 2**32 - 1])
    keys = rank_keys(torch.tensor([0.3]), positions)
    assert key_positions(keys).tolist() == positions.tolist()
    assert keys.argsort(descending=True).tolist() == [0, 1, 2, 3]


def test_a_dropped_box_drops_no_other() -> None:
    # 0 and 1 overlap by 2/3, 1 and 2 too, 0 and 2 by 3/7.
    assert kept([[0, 0, 10, 10], [2, 0, 12, 10], [4, 0, 14, 10]], [[0.9], [0.8], [0.7]]) == [0, 2]


def test_only_an_iou_above_the_threshold_drops() -> None:
    boxes = [[0, 0, 2, 1], [0, 0, 1, 1]]  # IoU exactly 1/2
    assert kept(boxes, [[0.9], [0.8]], iou_threshold=0.5) == [0, 1]
    assert kept(boxes, [[0.9], [0.8]], iou_threshold=0.499) == [0]


def test_classes_do_not_drop_each_other() -> None:
    boxes = [[0, 0, 10, 10], [0, 0, 10, 10]]
    # Position = anchor * 2 + class.
    assert kept(boxes, [[0.9, 0.6], [0.7, 0.8]]) == [0, 3]


def test_equal_scores_are_taken_by_anchor_then_class() -> None:
    boxes = [[0, 0, 1, 1], [5, 5, 6, 6], [5, 5, 6, 6]]
    assert kept(boxes, torch.full((3, 3), 0.5)) == [0, 1, 2, 3, 4, 5]


def test_scores_must_be_above_the_threshold() -> None:
    boxes = [[0, 0, 1, 1], [5, 5, 6, 6], [9, 9, 10, 10]]
    assert kept(boxes, [[0.5], [0.25], [float("nan")]], score_threshold=0.25) == [0]


@pytest.mark.parametrize("shape", [(0, 3), (2, 3)])
def test_nothing_above_the_threshold_keeps_nothing(shape: tuple[int, int]) -> None:
    assert kept(torch.zeros(shape[0], 4), torch.zeros(shape)) == []


def test_boxes_without_area_neither_drop_nor_fail() -> None:
    assert kept([[3, 3, 3, 3], [3, 3, 3, 3], [0, 0, 9, 9]], [[0.9], [0.8], [0.7]], iou_threshold=0.0) == [0, 1, 2]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    num_boxes=st.integers(0, 40),
    num_classes=st.integers(1, 4),
    iou_threshold=st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.6, 0.7, 1.0]),
    limit=st.integers(1, 60),
    whole=st.booleans(),
    tied=st.booleans(),
    head=st.sampled_from([2, 7, 256]),
    block=st.sampled_from([3, 8, 1024]),
)
def test_equals_the_plain_loop(
    seed: int,
    num_boxes: int,
    num_classes: int,
    iou_threshold: float,
    limit: int,
    whole: bool,
    tied: bool,
    head: int,
    block: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    boxes = random_boxes(generator, num_boxes, whole=whole)
    scores = torch.rand(num_boxes, num_classes, generator=generator)
    if tied:
        scores = (scores * 4).round() / 4
    expected = plain_nms(boxes, scores, 0.2, iou_threshold, limit)
    with pytest.MonkeyPatch.context() as patch:  # many blocks and many rankings
        patch.setattr(nms, "_HEAD", head)
        patch.setattr(nms, "_BLOCK", block)
        assert kept(boxes, scores, score_threshold=0.2, iou_threshold=iou_threshold, limit=limit) == expected


def test_limit_cuts_the_same_list() -> None:
    generator = torch.Generator().manual_seed(0)
    boxes, scores = random_boxes(generator, 2000, size=300), torch.rand(2000, 2, generator=generator)
    everything = kept(boxes, scores, limit=4000)
    assert len(everything) > 500
    for limit in (1, 100, 257, 500):
        assert kept(boxes, scores, limit=limit) == everything[:limit]


def test_a_chain_longer_than_a_block_is_resolved() -> None:
    # Each box drops the next one alone: every other box stays.
    left = torch.arange(600) * 3.0
    boxes = torch.stack([left, torch.zeros(600), left + 10, torch.ones(600)], dim=1)
    assert kept(boxes, torch.linspace(0.9, 0.1, 600)[:, None], limit=600) == list(range(0, 600, 2))


@pytest.mark.parametrize("layout", ["one place", "all apart", "clusters"])
def test_memory_is_bounded_when_every_pair_passes(layout: str) -> None:
    generator = torch.Generator().manual_seed(0)
    num_anchors, num_classes = 4693, 80  # what is kept at 800 x 1344: 375,440 pairs
    if layout == "one place":
        boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0]]).repeat(num_anchors, 1)
    elif layout == "all apart":
        corner = torch.arange(num_anchors)[:, None] * 20.0
        boxes = torch.cat([corner, corner, corner + 10, corner + 10], dim=1)
    else:
        centres = torch.randint(0, 12, (num_anchors, 1), generator=generator) * 50.0
        boxes = centres + torch.tensor([0.0, 0.0, 40.0, 40.0]) + torch.rand(num_anchors, 4, generator=generator)
    scores = torch.rand(num_anchors, num_classes, generator=generator) * 0.3 + 0.5
    with LargestTensor() as largest:
        result = kept(boxes, scores)
    assert len(result) == (num_classes if layout == "one place" else 100)
    # One int64 a pair; an IoU matrix of all pairs of one class would take 88 MB, of all pairs 564 GB.
    assert largest.num_bytes <= num_anchors * num_classes * 8
