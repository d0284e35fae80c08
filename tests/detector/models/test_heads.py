"""The heads: order of the outputs, initialisation, the IoU head."""

import math

import pytest
import torch
from torch import nn

from detector.config import RetinaNetConfig
from detector.models.heads import HeadOutputs, RetinaNetHeads


def small(*, iou_head: bool = True, tower_depth: int = 1, classes: int = 5) -> RetinaNetHeads:
    return RetinaNetHeads(RetinaNetConfig(fpn_channels=16, tower_depth=tower_depth, iou_head=iou_head), classes)


def pyramid(channels: int = 16) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(2, channels, h, w, generator=generator) for h, w in ((4, 6), (2, 3), (1, 2))]


def test_iou_head_has_20745_parameters_and_is_all_that_differs() -> None:
    def count(iou_head: bool) -> int:
        return sum(p.numel() for p in RetinaNetHeads(RetinaNetConfig(iou_head=iou_head), 80).parameters())

    assert count(True) - count(False) == 20_745
    heads = RetinaNetHeads(RetinaNetConfig(), 80)
    assert heads.iou_logits is not None
    assert tuple(heads.iou_logits.weight.shape) == (9, 256, 3, 3)


def test_initialisation() -> None:
    torch.manual_seed(0)
    heads = RetinaNetHeads(RetinaNetConfig(), 80)
    convolutions = [module for module in heads.modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) == 4 + 4 + 3
    for convolution in convolutions:
        assert convolution.weight.mean().item() == pytest.approx(0, abs=3e-4)
        assert convolution.weight.std().item() == pytest.approx(0.01, rel=0.02)
        if convolution is not heads.cls_logits:
            assert convolution.bias is not None
            assert not convolution.bias.any()
    torch.testing.assert_close(heads.cls_logits.bias, torch.full((720,), -math.log(99)))
    assert not any(isinstance(module, nn.GroupNorm) for module in heads.modules())


def test_shapes() -> None:
    outputs = small()(pyramid())
    assert [tuple(o.shape) for o in outputs.cls_logits] == [(2, 216, 5), (2, 54, 5), (2, 18, 5)]
    assert [tuple(o.shape) for o in outputs.box_deltas] == [(2, 216, 4), (2, 54, 4), (2, 18, 4)]
    assert outputs.iou_logits is not None
    assert [tuple(o.shape) for o in outputs.iou_logits] == [(2, 216), (2, 54), (2, 18)]
    assert outputs.feature_shapes == ((4, 6), (2, 3), (1, 2))
    assert small(iou_head=False)(pyramid()).iou_logits is None


def test_anchor_order_is_y_x_anchor() -> None:
    heads = small(tower_depth=0)
    features = pyramid()
    outputs = heads(features)
    assert outputs.iou_logits is not None
    assert heads.iou_logits is not None
    raw_cls, raw_box, raw_iou = (
        heads.cls_logits(features[0]),
        heads.box_deltas(features[0]),
        heads.iou_logits(features[0]),
    )
    image, y, x, anchor = 1, 2, 4, 7
    flat = (y * 6 + x) * 9 + anchor
    torch.testing.assert_close(outputs.cls_logits[0][image, flat], raw_cls[image, anchor * 5 : anchor * 5 + 5, y, x])
    torch.testing.assert_close(outputs.box_deltas[0][image, flat], raw_box[image, anchor * 4 : anchor * 4 + 4, y, x])
    torch.testing.assert_close(outputs.iou_logits[0][image, flat], raw_iou[image, anchor, y, x])


def test_channels_last_outputs_are_views() -> None:
    heads = small().to(memory_format=torch.channels_last)
    outputs: HeadOutputs = heads([level.contiguous(memory_format=torch.channels_last) for level in pyramid()])
    with torch.no_grad():
        plain = small()
        plain.load_state_dict(heads.state_dict())
        expected = plain(pyramid())
    assert outputs.iou_logits is not None
    assert expected.iou_logits is not None
    pairs = [
        (ours, theirs)
        for field in ("cls_logits", "box_deltas", "iou_logits")
        for ours, theirs in zip(getattr(outputs, field), getattr(expected, field), strict=True)
    ]
    for ours, theirs in pairs:
        assert ours._is_view()
        assert ours.is_contiguous()
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_iou_gradient_reaches_the_box_tower_and_not_the_class_tower() -> None:
    heads = small()
    outputs = heads(pyramid())
    assert outputs.iou_logits is not None
    sum(level.sum() for level in outputs.iou_logits).backward()
    assert heads.box_tower[0].weight.grad.abs().sum() > 0  # type: ignore[union-attr, operator]
    assert heads.cls_tower[0].weight.grad is None
    assert heads.box_deltas.weight.grad is None


def test_group_norm_towers() -> None:
    heads = RetinaNetHeads(RetinaNetConfig(fpn_channels=48, tower_depth=2, tower_norm="group"), 5)
    norms = [module for module in heads.modules() if isinstance(module, nn.GroupNorm)]
    assert [norm.num_groups for norm in norms] == [6] * 4
    assert heads(pyramid(48)).cls_logits[0].shape == (2, 216, 5)
