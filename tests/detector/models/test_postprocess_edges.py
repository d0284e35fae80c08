"""Post-processing of empty, padded, damaged and very large outputs."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from detector.config import ScoringConfig
from detector.models.heads import HeadOutputs
from detector.models.postprocess import (
    Candidates,
    candidates_to_detections,
    postprocess,
    probability,
)
from tests.detector.models.postprocess_cases import (
    FIELDS,
    assert_same,
    changed,
    logit,
    make_case,
    one_level,
    select_candidates,
)


def test_without_iou_head_the_class_score_counts_and_the_iou_is_nan() -> None:
    (found,) = postprocess(*make_case(5, iou_head=False), ScoringConfig(alpha=0.2))
    assert len(found.scores) > 0
    assert torch.equal(found.scores, found.class_scores)
    assert found.ious.isnan().all()


def test_an_image_does_not_depend_on_its_batch() -> None:
    outputs, anchors, valid, sizes = make_case(8, num_images=4, level_sizes=(300, 80, 21), step=0.5)
    valid[2] = False
    scoring = ScoringConfig(alpha=0.3, top_k=50)
    batch = postprocess(outputs, anchors, valid, sizes, scoring)
    assert len(batch) == 4
    for image in range(4):
        part = slice(image, image + 1)
        alone = changed(outputs, lambda x, part=part: x[part])  # type: ignore[misc]
        assert_same(postprocess(alone, anchors, valid[part], sizes[part], scoring)[0], batch[image])


@pytest.mark.parametrize("iou_head", [False, True])
@pytest.mark.parametrize("why", ["threshold", "padding"])
def test_nothing_found_gives_empty_tensors(why: str, iou_head: bool) -> None:
    outputs, anchors, valid, sizes = make_case(2, num_images=2, iou_head=iou_head)
    if why == "padding":
        valid = torch.zeros_like(valid)
    scoring = ScoringConfig(score_threshold=1.0 if why == "threshold" else 0.0)
    for found in postprocess(outputs, anchors, valid, sizes, scoring):
        assert found.boxes.shape == (0, 4)
        assert all(getattr(found, name).shape == (0,) for name in FIELDS[1:])
        assert found.labels.dtype == found.anchor_index.dtype == torch.int64


def test_anchors_in_the_padding_take_no_place_in_the_top_k() -> None:
    outputs, anchors, valid, sizes = one_level(logit([[0.9], [0.8], [0.7]]))
    valid[0, 0] = False
    (found,) = postprocess(outputs, anchors, valid, sizes, ScoringConfig(top_k=2))
    assert found.anchor_index.tolist() == [1, 2]


def test_boxes_are_clipped_to_their_own_image() -> None:
    boxes = torch.tensor([[-5.0, -5.0, 50.0, 50.0]])
    outputs, anchors, _, _ = one_level([[5.0]], boxes=boxes)
    outputs = changed(outputs, lambda x: x.repeat(2, 1, 1))
    sizes = torch.tensor([[20, 30], [40, 10]])
    found = postprocess(outputs, anchors, torch.ones(2, 1, dtype=torch.bool), sizes, ScoringConfig())
    assert [image.boxes.tolist() for image in found] == [[[0, 0, 30, 20]], [[0, 0, 10, 40]]]


def test_never_more_than_the_limit() -> None:
    case = one_level(torch.linspace(3, -2, 400)[:, None])
    (found,) = postprocess(*case, ScoringConfig(score_threshold=0.0))
    assert found.anchor_index.tolist() == list(range(100))


@pytest.mark.parametrize("where", ["class", "iou", "box"])
@pytest.mark.parametrize("top_k", [2, 1000])
def test_nan_outputs_are_dropped(where: str, top_k: int) -> None:
    case = one_level(logit([[0.9, 0.2], [0.8, 0.2], [0.7, 0.2]]), logit([0.5, 0.5, 0.5]))
    (cls_logits,), (box_deltas,), (iou_logits,) = case[0].cls_logits, case[0].box_deltas, case[0].iou_logits or ()
    {"class": cls_logits, "box": box_deltas, "iou": iou_logits}[where][0, 0] = torch.nan
    (found,) = postprocess(*case, ScoringConfig(top_k=top_k))
    assert 0 not in found.anchor_index.tolist()
    assert 1 in found.anchor_index.tolist()
    assert not any(getattr(found, name).isnan().any() for name in FIELDS)


def test_infinite_outputs_do_not_fail() -> None:
    case = one_level([[torch.inf], [-torch.inf], [1.0]], [1.0, torch.inf, -torch.inf])
    (found,) = postprocess(*case, ScoringConfig(score_threshold=0.0))
    assert found.anchor_index.tolist() == [0]  # the others score 0, which is not above 0


def test_n3_bfloat16_outputs_are_computed_on_in_float32() -> None:
    outputs, anchors, valid, sizes = make_case(4, level_sizes=(300, 50), num_classes=5)
    half = changed(outputs, Tensor.bfloat16)
    exact = changed(half, Tensor.float)
    for alpha in (0.1, 0.5):
        (found,) = postprocess(half, anchors, valid, sizes, ScoringConfig(alpha=alpha))
        (expected,) = postprocess(exact, anchors, valid, sizes, ScoringConfig(alpha=alpha))
        assert_same(found, expected)
        assert all(getattr(found, name).dtype == torch.float32 for name in ("boxes", "scores", "class_scores", "ious"))


def test_no_gradient_is_kept() -> None:
    outputs, anchors, valid, sizes = make_case(4)
    outputs = changed(outputs, lambda x: x.requires_grad_())
    (found,) = postprocess(outputs, anchors, valid, sizes, ScoringConfig())
    assert not found.scores.requires_grad


class LargestTensor(TorchDispatchMode):
    """Records the size of the largest tensor that any operation makes (views of the outputs aside)."""

    def __init__(self) -> None:
        super().__init__()
        self.num_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else [result]:
            if isinstance(value, torch.Tensor) and not func.is_view:
                self.num_bytes = max(self.num_bytes, value.numel() * value.element_size())
        return result


def test_memory_is_bounded_at_small_alpha_and_full_size() -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = [9 * -(-800 // s) * -(-1344 // s) for s in (8, 16, 32, 64, 128)]
    assert sum(sizes) == 201_600
    corners = [torch.rand(n, 2, generator=generator) * 1000 for n in sizes]
    outputs = HeadOutputs(
        cls_logits=tuple(torch.randn(1, n, 80, generator=generator) - 6 for n in sizes),
        box_deltas=tuple(torch.zeros(1, n, 4) for n in sizes),
        iou_logits=tuple(torch.randn(1, n, generator=generator) for n in sizes),
    )
    anchors = tuple(torch.cat([corner, corner + 100], dim=1) for corner in corners)
    valid = torch.ones(1, sum(sizes), dtype=torch.bool)
    scoring = ScoringConfig(alpha=0.1)
    (candidates,) = select_candidates(outputs, anchors, valid, torch.tensor([[800, 1333]]), scoring)
    assert candidates.iou_logits is not None
    q = probability(candidates.iou_logits)[:, None].double()
    pairs = probability(candidates.cls_logits).double() ** 0.1 * q**0.9 > 0.05
    assert pairs.sum() > 370_000  # the bound is tested where it matters
    with LargestTensor() as largest:
        (found,) = postprocess(outputs, anchors, valid, torch.tensor([[800, 1333]]), scoring)
    assert len(found.scores) == 100
    assert largest.num_bytes <= 4693 * 80 * 8  # float64 of all pairs; the logits alone are 64.5 MB


def test_candidates_of_no_anchor_give_no_detections() -> None:
    nothing = Candidates(
        anchor_index=torch.zeros(0, dtype=torch.int64),
        boxes=torch.zeros(0, 4),
        cls_logits=torch.zeros(0, 3),
        iou_logits=torch.zeros(0),
    )
    assert candidates_to_detections(nothing, ScoringConfig()).boxes.shape == (0, 4)
