"""Box area, clipping and IoU: hand-computed, against torchvision, empty and degenerate."""

import pytest
import torch
from torchvision import ops

from detector.boxes import box_area, clip_boxes, elementwise_iou, pairwise_iou


def random_boxes(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(*shape, 2, 2, generator=generator) * 100
    return torch.cat([corners.amin(dim=-2), corners.amax(dim=-2)], dim=-1)


def test_area_has_no_plus_one() -> None:
    boxes = torch.tensor([[0.0, 0.0, 4.0, 5.0], [2.0, 2.0, 2.0, 9.0], [5.0, 5.0, 3.0, 3.0]])
    assert box_area(boxes).tolist() == [20.0, 0.0, 0.0]


def test_iou_by_hand() -> None:
    # 10 x 10 boxes shifted by half: intersection 50, union 150.
    box = torch.tensor([0.0, 0.0, 10.0, 10.0])
    shifted = torch.tensor([5.0, 0.0, 15.0, 10.0])
    assert elementwise_iou(box, shifted).item() == pytest.approx(1 / 3)
    assert elementwise_iou(box, box).item() == 1.0
    assert elementwise_iou(box, box + 10).item() == 0.0  # a shared corner does not overlap


def test_iou_equals_torchvision_and_is_symmetric() -> None:
    a, b = random_boxes(50), random_boxes(40, seed=1)
    torch.testing.assert_close(pairwise_iou(a, b), ops.box_iou(a, b), rtol=0, atol=0)
    torch.testing.assert_close(pairwise_iou(a, b), pairwise_iou(b, a).T, rtol=0, atol=0)
    torch.testing.assert_close(elementwise_iou(a[:40], b), ops.box_iou(a[:40], b).diagonal(), rtol=0, atol=0)


def test_iou_batches_and_takes_no_boxes() -> None:
    a, b = random_boxes(3, 5), random_boxes(3, 7, seed=1)
    batched = pairwise_iou(a, b)
    assert batched.shape == (3, 5, 7)
    torch.testing.assert_close(batched[2], pairwise_iou(a[2], b[2]))
    assert pairwise_iou(a, b[:, :0]).shape == (3, 5, 0)
    assert pairwise_iou(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0, 0)


def test_iou_of_empty_boxes_is_zero_with_finite_gradient() -> None:
    point = torch.tensor([3.0, 3.0, 3.0, 3.0], requires_grad=True)
    iou = elementwise_iou(point, torch.tensor([3.0, 3.0, 3.0, 3.0]))
    iou.backward()
    assert iou.item() == 0.0
    assert point.grad is not None
    assert point.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_boxes_are_computed_in_float32(dtype: torch.dtype) -> None:
    boxes = (random_boxes(20) * 10).to(dtype)
    iou = pairwise_iou(boxes, boxes)
    assert iou.dtype == box_area(boxes).dtype == torch.float32
    torch.testing.assert_close(iou, ops.box_iou(boxes.float(), boxes.float()), rtol=0, atol=0)


def test_clip_to_each_image() -> None:
    boxes = torch.tensor([[-5.0, -5.0, 50.0, 60.0]]).repeat(2, 3, 1)
    clipped = clip_boxes(boxes, torch.tensor([[30, 40], [100, 20]]))
    assert clipped[0].tolist() == [[0.0, 0.0, 40.0, 30.0]] * 3
    assert clipped[1].tolist() == [[0.0, 0.0, 20.0, 60.0]] * 3
    assert clip_boxes(boxes[:, :0], torch.tensor([[30, 40], [100, 20]])).shape == (2, 0, 4)
    one_each = clip_boxes(boxes[:, 0], torch.tensor([[30, 40], [100, 20]]))
    assert one_each.tolist() == [[0.0, 0.0, 40.0, 30.0], [0.0, 0.0, 20.0, 60.0]]
