"""Anchor assignment: hand-computed cases and an image-by-image reference, fuzzed with ties."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.boxes import pairwise_iou
from detector.config import LossConfig
from detector.models import matching
from detector.models.matching import Matches, match_anchors

ANCHORS = torch.tensor(
    [[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 20.0], [100.0, 100.0, 110.0, 110.0], [0.0, 0.0, 10.0, 24.0]]
)


def match_one(gt: list[list[float]], anchors: torch.Tensor = ANCHORS, config: LossConfig | None = None) -> Matches:
    boxes = torch.tensor(gt).reshape(1, len(gt), 4)
    valid = torch.ones(1, len(gt), dtype=torch.bool)
    anchor_valid = torch.ones(1, len(anchors), dtype=torch.bool)
    return match_anchors(anchors, boxes, valid, anchor_valid, config or LossConfig())


def reference(
    anchors: torch.Tensor, boxes: torch.Tensor, anchor_valid: torch.Tensor, config: LossConfig
) -> tuple[list[int], list[int]]:
    """MMDetection's MaxIoUAssigner for one image, anchor by anchor; boxes are the valid ones."""
    state, index = [-1] * len(anchors), [0] * len(anchors)
    iou = pairwise_iou(boxes, anchors) * anchor_valid
    for anchor in range(len(anchors)):
        if not anchor_valid[anchor]:
            continue
        column = iou[:, anchor].tolist()
        best = max(column, default=0.0)
        if best > 0 and torch.tensor(best) >= config.positive_iou:
            state[anchor], index[anchor] = 1, column.index(best)
        elif torch.tensor(best) < config.negative_iou:
            state[anchor] = 0
    for gt in range(len(boxes) if config.low_quality_matches else 0):
        best = iou[gt].max().item()
        for anchor in range(len(anchors)):
            if best > 0 and iou[gt, anchor].item() == best:
                state[anchor], index[anchor] = 1, gt
    return state, index


def test_thresholds_by_hand() -> None:
    # IoU with the 10 x 10 ground truth: 1, 1/2 (positive at the threshold), 0, 10/24 (ignored).
    matches = match_one([[0.0, 0.0, 10.0, 10.0]])
    assert matches.state.tolist() == [[1, 1, 0, -1]]
    assert matches.gt_index.tolist() == [[0, 0, 0, 0]]
    assert matches.state.dtype == torch.int8
    assert matches.gt_index.dtype == torch.int64


def test_negative_threshold_is_exclusive() -> None:
    anchors = torch.tensor([[0.0, 0.0, 8.0, 8.0], [0.0, 0.0, 8.0, 16.0], [0.0, 0.0, 8.0, 32.0]])
    matches = match_one([[0.0, 0.0, 8.0, 8.0]], anchors, LossConfig(positive_iou=0.75, negative_iou=0.25))
    assert matches.state.tolist() == [[1, -1, -1]]  # 1/4 is not below 1/4


def test_a_poorly_covered_ground_truth_takes_all_its_best_anchors() -> None:
    # A 2 x 2 box lies in three anchors; the smallest has the best IoU, 4/100.
    matches = match_one([[1.0, 1.0, 3.0, 3.0]])
    assert matches.state.tolist() == [[1, 0, 0, 0]]
    ties = match_one([[1.0, 1.0, 3.0, 3.0]], ANCHORS[[0, 2, 0, 1]])
    assert ties.state.tolist() == [[1, 0, 1, 0]]
    off = match_one([[1.0, 1.0, 3.0, 3.0]], config=LossConfig(low_quality_matches=False))
    assert off.state.tolist() == [[0, 0, 0, 0]]


def test_a_ground_truth_off_all_anchors_makes_nothing_positive() -> None:
    assert match_one([[50.0, 50.0, 60.0, 60.0]]).state.tolist() == [[0, 0, 0, 0]]
    assert match_one([[5.0, 5.0, 5.0, 5.0]]).state.tolist() == [[0, 0, 0, 0]]  # empty
    lax = LossConfig(positive_iou=0.0, negative_iou=0.0)
    assert (match_one([[50.0, 50.0, 60.0, 60.0]], config=lax).state != 1).all()


def test_first_ground_truth_wins_a_tie_and_the_last_claim_stands() -> None:
    anchors = torch.tensor([[0.0, 0.0, 10.0, 10.0], [20.0, 0.0, 30.0, 10.0]])
    box = [0.0, 0.0, 10.0, 10.0]
    without = LossConfig(low_quality_matches=False)
    assert match_one([box, box], anchors, without).gt_index.tolist() == [[0, 0]]
    assert match_one([box, box], anchors).gt_index.tolist() == [[1, 0]]
    # The second box overlaps the anchor less, but has no better one: it overwrites the better match.
    assert match_one([box, [0.0, 0.0, 5.0, 5.0]], anchors).gt_index.tolist() == [[1, 0]]
    assert match_one([box, [0.0, 0.0, 5.0, 5.0]], anchors, without).gt_index.tolist() == [[0, 0]]


def test_no_ground_truth() -> None:
    matches = match_anchors(
        ANCHORS,
        torch.zeros(2, 0, 4),
        torch.zeros(2, 0, dtype=torch.bool),
        torch.tensor([[True, True, False, True]] * 2),
        LossConfig(),
    )
    assert matches.state.tolist() == [[0, 0, -1, 0]] * 2
    assert matches.gt_index.tolist() == [[0, 0, 0, 0]] * 2


def test_padding_never_matches_whatever_it_holds() -> None:
    boxes = torch.tensor([[[float("nan")] * 4, [0.0, 0.0, 10.0, 10.0], [100.0, 100.0, 110.0, 110.0]]])
    valid = torch.tensor([[False, True, False]])
    matches = match_anchors(ANCHORS, boxes, valid, torch.ones(1, 4, dtype=torch.bool), LossConfig())
    assert matches.state.tolist() == [[1, 1, 0, -1]]
    assert matches.gt_index.tolist() == [[1, 1, 0, 0]]


def test_best_anchors_are_sought_among_the_valid() -> None:
    boxes = torch.tensor([[[0.0, 0.0, 10.0, 10.0]]])
    valid = torch.tensor([[True]])
    matches = match_anchors(ANCHORS, boxes, valid, torch.tensor([[False, False, True, True]]), LossConfig())
    assert matches.state.tolist() == [[-1, -1, 0, 1]]


corner = st.integers(0, 6)
box = st.tuples(corner, corner, st.integers(0, 5), st.integers(0, 5)).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)


@settings(max_examples=150, deadline=None)
@given(
    anchors=st.lists(box, min_size=1, max_size=12),
    images=st.lists(st.lists(box, max_size=6), min_size=1, max_size=4),
    low_quality_matches=st.booleans(),
    data=st.data(),
)
def test_equals_the_reference(
    anchors: list[tuple[int, ...]], images: list[list[tuple[int, ...]]], low_quality_matches: bool, data: st.DataObject
) -> None:
    config = LossConfig(low_quality_matches=low_quality_matches)
    flat = torch.tensor(anchors, dtype=torch.float32)
    most = max(len(image) for image in images)
    boxes, valid = torch.zeros(len(images), most, 4), torch.zeros(len(images), most, dtype=torch.bool)
    for image, gt in enumerate(images):
        boxes[image, : len(gt)] = torch.tensor(gt, dtype=torch.float32).reshape(-1, 4)
        valid[image, : len(gt)] = True
    flags = st.lists(st.booleans(), min_size=len(anchors), max_size=len(anchors))
    anchor_valid = torch.tensor([data.draw(flags) for _ in images])
    matches = match_anchors(flat, boxes, valid, anchor_valid, config)
    for image in range(len(images)):
        state, index = reference(flat, boxes[image][valid[image]], anchor_valid[image], config)
        assert matches.state[image].tolist() == state
        assert matches.gt_index[image].tolist() == index


@pytest.mark.parametrize("elements", [1, 500, 10**9])
def test_how_many_images_are_taken_at_once_changes_nothing(elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    anchors, boxes = torch.rand(200, 4) * 50, torch.rand(5, 7, 4) * 50
    anchors[:, 2:] += anchors[:, :2]
    boxes[..., 2:] += boxes[..., :2]
    arguments = (anchors, boxes, torch.rand(5, 7) < 0.7, torch.rand(5, 200) < 0.9, LossConfig())
    expected = match_anchors(*arguments)
    monkeypatch.setattr(matching, "_CPU_ELEMENTS", elements)
    found = match_anchors(*arguments)
    assert torch.equal(found.state, expected.state)
    assert torch.equal(found.gt_index, expected.gt_index)
    assert (expected.state == 1).any()
