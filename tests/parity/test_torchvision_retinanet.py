"""The same weights in torchvision's RetinaNet and in ours: what should agree agrees, to float32 tolerance.

Where the paper's model differs from torchvision's (P6 from C5, no ReLU before P7, low-quality matches, the lower clamp
of dw and dh) torchvision cannot vouch for it; those cases are computed by
hand here or beside the module they belong to.
"""

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision import ops
from torchvision.models.detection import retinanet_resnet50_fpn
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.models.detection.image_list import ImageList

from detector.config import AnchorConfig, BackboneConfig, LossConfig, RetinaNetConfig
from detector.models.anchors import AnchorGenerator
from detector.models.box_coder import LARGEST_LOG_RATIO, decode, encode
from detector.models.heads import HeadOutputs
from detector.models.losses import NO_CLASS, detection_losses, sigmoid_focal_loss
from detector.models.matching import match_anchors
from detector.models.retinanet import RetinaNet

CLASSES = 7
SIZES = [(128, 128), (256, 128)]


@pytest.fixture(scope="module")
def theirs() -> Any:
    """torchvision's detector with random weights, BatchNorm statistics included."""
    torch.manual_seed(0)
    model = retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=CLASSES).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, std=0.1)
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2.0)
    for convolution in model.head.modules():
        if isinstance(convolution, nn.Conv2d):
            nn.init.kaiming_normal_(convolution.weight)  # with N(0, 0.01) every output is nearly its bias
    return model


@pytest.fixture(scope="module")
def ours(theirs: Any) -> RetinaNet:
    """Our detector with torchvision's weights; the IoU head keeps its own."""
    config = RetinaNetConfig(
        backbone=BackboneConfig(weights="none", norm="frozen_statistics"), anchors=AnchorConfig(centre_offset=0.0)
    )
    with pytest.warns(UserWarning, match="normalises nothing"):
        model = RetinaNet(config, CLASSES).eval()
    model.backbone.load_state_dict(theirs.backbone.body.state_dict())
    pyramid = theirs.backbone.fpn
    for level in range(3):
        model.fpn.lateral[level].load_state_dict(pyramid.inner_blocks[level][0].state_dict())
        model.fpn.output[level].load_state_dict(pyramid.layer_blocks[level][0].state_dict())
    heads = (theirs.head.classification_head, theirs.head.regression_head)
    for tower, head in zip((model.heads.cls_tower, model.heads.box_tower), heads, strict=True):
        own = [layer for layer in tower if isinstance(layer, nn.Conv2d)]
        for layer, other in zip(own, head.conv, strict=True):
            layer.load_state_dict(other[0].state_dict())
    model.heads.cls_logits.load_state_dict(heads[0].cls_logits.state_dict())
    model.heads.box_deltas.load_state_dict(heads[1].bbox_reg.state_dict())
    return model


def images(height: int, width: int) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


def assert_close(found: Tensor, expected: Tensor) -> None:
    """Equal to float32 accuracy, measured against the largest value: the layers add up terms of that size."""
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_trunk_c3_to_c5(ours: RetinaNet, theirs: Any, size: tuple[int, int]) -> None:
    expected = theirs.backbone.body(images(*size))
    assert list(expected) == ["0", "1", "2"]
    for found, other in zip(ours.backbone(images(*size)), expected.values(), strict=True):
        assert other.std() > 0.01
        assert_close(found, other)


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_pyramid_p3_to_p5(ours: RetinaNet, theirs: Any, size: tuple[int, int]) -> None:
    expected = list(theirs.backbone(images(*size)).values())
    found = ours.fpn(ours.backbone(images(*size)))
    for level in range(3):
        assert_close(found[level], expected[level])
    assert [level.shape[-2:] for level in found] == [level.shape[-2:] for level in expected]


@torch.no_grad()
def test_p6_and_p7_by_hand(ours: RetinaNet) -> None:
    """torchvision makes P6 from P5 and puts a ReLU before P7; MMDetection's RetinaNet, and ours, do neither."""
    c5 = ours.backbone(images(256, 128))[2]
    p6, p7 = ours.fpn(ours.backbone(images(256, 128)))[3:]
    conv6, conv7 = ours.fpn.p6, ours.fpn.p7
    unfolded = functional.unfold(c5, 3, padding=1, stride=2)
    by_hand = conv6.weight.flatten(1) @ unfolded + conv6.bias[:, None]  # type: ignore[index]
    assert_close(p6, by_hand.view_as(p6))
    assert (p6 < 0).any()
    by_hand = conv7.weight.flatten(1) @ functional.unfold(p6, 3, padding=1, stride=2) + conv7.bias[:, None]  # type: ignore[index]
    assert_close(p7, by_hand.view_as(p7))


@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_heads_on_the_same_pyramid(ours: RetinaNet, theirs: Any, size: tuple[int, int]) -> None:
    pyramid = list(theirs.backbone(images(*size)).values())
    expected = theirs.head(pyramid)
    found = ours.heads(pyramid)
    assert expected["cls_logits"].std() > 0.1
    assert_close(torch.cat(found.cls_logits, dim=1), expected["cls_logits"])
    assert_close(torch.cat(found.box_deltas, dim=1), expected["bbox_regression"])


@torch.no_grad()
def test_whole_forward_from_pixels_to_p5_outputs(ours: RetinaNet, theirs: Any) -> None:
    batch = images(256, 128)
    expected = theirs.head(list(theirs.backbone(batch).values())[:3])
    found = ours(batch)
    assert_close(torch.cat(found.cls_logits[:3], dim=1), expected["cls_logits"])
    assert_close(torch.cat(found.box_deltas[:3], dim=1), expected["bbox_regression"])


def their_anchors(theirs: Any, config: AnchorConfig, height: int, width: int) -> Tensor:
    """torchvision's grid around our cell anchors (its own are rounded to whole pixels)."""
    generator = theirs.anchor_generator
    cells = AnchorGenerator(dataclasses.replace(config, centre_offset=0.0))([(1, 1)] * 5, "cpu")
    generator.cell_anchors = [cell.clone() for cell in cells]
    shapes = [(height // stride, width // stride) for stride in (8, 16, 32, 64, 128)]
    maps = [torch.zeros(1, 1, *shape) for shape in shapes]
    anchors: Tensor = generator(ImageList(torch.zeros(1, 3, height, width), [(height, width)]), maps)[0]
    return anchors


@pytest.mark.parametrize("size", [(128, 128), (256, 128), (640, 1280)])
def test_anchors(ours: RetinaNet, theirs: Any, size: tuple[int, int]) -> None:
    height, width = size
    levels = ours.anchors([(height // stride, width // stride) for stride in ours.anchors.strides], "cpu")
    expected = their_anchors(theirs, ours.config.anchors, height, width)
    torch.testing.assert_close(torch.cat(levels), expected, rtol=0, atol=1e-4)


def test_our_cell_anchors_are_torchvisions_before_rounding() -> None:
    config = AnchorConfig(centre_offset=0.0)
    cells = AnchorGenerator(config)([(1, 1)] * 5, "cpu")
    for stride, cell in zip((8, 16, 32, 64, 128), cells, strict=True):
        scales = torch.tensor([4 * stride * scale for scale in config.scales])
        roots = torch.tensor(config.aspect_ratios).sqrt()
        widths, heights = (1 / roots[:, None] * scales).flatten(), (roots[:, None] * scales).flatten()
        torch.testing.assert_close(cell, torch.stack([-widths, -heights, widths, heights], dim=1) / 2)


def random_boxes(count: int, seed: int, side: float = 256.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    centre = torch.rand(count, 2, generator=generator) * side
    half = torch.exp(torch.rand(count, 2, generator=generator) * 3.5)
    return torch.cat([centre - half, centre + half], dim=1)


def test_box_coder_within_the_clamp() -> None:
    anchors, boxes = random_boxes(500, 0), random_boxes(500, 1)
    coder = BoxCoder(weights=(1.0, 1.0, 1.0, 1.0))
    torch.testing.assert_close(encode(anchors, boxes), coder.encode_single(boxes, anchors))
    deltas = torch.randn(500, 4, generator=torch.Generator().manual_seed(2)).clamp(-4, 4)
    torch.testing.assert_close(decode(anchors, deltas), coder.decode_single(deltas, anchors), rtol=1e-5, atol=1e-3)
    huge = torch.full((500, 4), 9.0)  # growth is clamped alike
    torch.testing.assert_close(decode(anchors, huge), coder.decode_single(huge, anchors), rtol=1e-5, atol=1e-2)


def test_shrinking_is_clamped_too_by_hand() -> None:
    anchor = torch.tensor([[0.0, 0.0, 1000.0, 1000.0]])
    shrunk = decode(anchor, torch.tensor([[0.0, 0.0, -100.0, -LARGEST_LOG_RATIO]]))
    torch.testing.assert_close(shrunk, torch.tensor([[492.0, 492.0, 508.0, 508.0]]))  # 16 pixels, not none


@pytest.mark.parametrize("seed", range(5))
def test_matching_without_low_quality_matches(seed: int) -> None:
    anchors = torch.cat(AnchorGenerator(AnchorConfig())([(32, 32), (16, 16), (8, 8), (4, 4), (2, 2)], "cpu"))
    counts = [1, 4, 12]
    boxes, valid = torch.zeros(3, 12, 4), torch.zeros(3, 12, dtype=torch.bool)
    for image, count in enumerate(counts):
        boxes[image, :count] = random_boxes(count, 10 * seed + image)
        valid[image, :count] = True
    config = LossConfig(low_quality_matches=False)
    found = match_anchors(anchors, boxes, valid, torch.ones(3, len(anchors), dtype=torch.bool), config)
    matcher = Matcher(0.5, 0.4, allow_low_quality_matches=False)
    for image, count in enumerate(counts):
        expected = matcher(ops.box_iou(boxes[image, :count], anchors))
        state = torch.where(expected >= 0, 1, torch.where(expected == matcher.BETWEEN_THRESHOLDS, -1, 0))
        assert torch.equal(found.state[image].long(), state)
        assert torch.equal(found.gt_index[image], expected.clamp(min=0))


def test_low_quality_matches_differ_from_torchvisions_as_they_should() -> None:
    """torchvision gives a ground truth's best anchor to the ground truth that anchor overlaps most; MMDetection, and
    ours, give it to the ground truth whose best it is."""
    anchors = torch.tensor([[0.0, 0.0, 16.0, 16.0], [64.0, 64.0, 80.0, 80.0]])
    boxes = torch.tensor([[0.0, 0.0, 16.0, 16.0], [0.0, 0.0, 4.0, 4.0]])
    assert Matcher(0.5, 0.4, True)(ops.box_iou(boxes, anchors)).tolist() == [0, -1]
    arguments = (anchors, boxes[None], torch.ones(1, 2, dtype=torch.bool), torch.ones(1, 2, dtype=torch.bool))
    found = match_anchors(*arguments, LossConfig())
    assert found.state.tolist() == [[1, 0]]
    assert found.gt_index.tolist() == [[1, 0]]
    # And a ground truth off every anchor has IoU 0 with each: torchvision takes them all for its best.
    away = torch.tensor([[30.0, 30.0, 40.0, 40.0]])
    assert Matcher(0.5, 0.4, True)(ops.box_iou(away, anchors)).tolist() == [0, 0]
    found = match_anchors(anchors, away[None], torch.ones(1, 1, dtype=torch.bool), arguments[3], LossConfig())
    assert found.state.tolist() == [[0, 0]]


def test_focal_loss_and_gradient() -> None:
    torch.manual_seed(0)
    logits = (torch.randn(2, 300, CLASSES) * 3 - 2).requires_grad_()
    target = torch.where(torch.rand(2, 300) < 0.1, torch.randint(0, CLASSES, (2, 300)), NO_CLASS)
    one_hot = (target[..., None] == torch.arange(CLASSES)).float()
    expected = ops.sigmoid_focal_loss(logits, one_hot, alpha=0.25, gamma=2, reduction="sum")
    found = sigmoid_focal_loss(logits, target, 0.25, 2.0)
    torch.testing.assert_close(found, expected)
    (found_gradient,) = torch.autograd.grad(found, logits)
    (expected_gradient,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(found_gradient, expected_gradient)


def test_class_loss_of_one_image_from_pixels(ours: RetinaNet, theirs: Any) -> None:
    """Matching, targets and focal loss together, on outputs of the network. torchvision divides by the positives."""
    height, width = 256, 128
    with torch.no_grad():
        outputs = ours(images(height, width)[:1])
    anchors = ours.anchors(outputs.feature_shapes, "cpu")
    boxes = torch.tensor([[10.0, 20.0, 60.0, 70.0], [40.0, 100.0, 120.0, 220.0], [70.0, 5.0, 100.0, 40.0]])
    labels = torch.tensor([3, 0, 6])
    matched = Matcher(0.5, 0.4, False)(ops.box_iou(boxes, torch.cat(anchors)))
    positives = int((matched >= 0).sum())
    assert positives > 5
    head = theirs.head.classification_head
    expected = head.compute_loss([{"labels": labels}], {"cls_logits": torch.cat(outputs.cls_logits, dim=1)}, [matched])
    inside = torch.ones(1, len(matched), dtype=torch.bool)
    valid = torch.ones(1, 3, dtype=torch.bool)
    config = LossConfig(low_quality_matches=False)
    found = detection_losses(outputs, anchors, boxes[None], labels[None], valid, inside, torch.ones(1), config)
    assert found.normaliser.item() == positives
    torch.testing.assert_close(found.cls / found.normaliser, expected, rtol=1e-4, atol=0)


def test_box_and_iou_loss_by_hand() -> None:
    """One anchor, one box 1.5 times as wide: deltas 0 against dx = 0.25 and dw = log 1.5, IoU 2/3."""
    outputs = HeadOutputs((torch.zeros(1, 1, CLASSES),), (torch.zeros(1, 1, 4),), (torch.full((1, 1), math.log(3)),))
    one = torch.ones(1, 1, dtype=torch.bool)
    sums = detection_losses(
        outputs,
        (torch.tensor([[0.0, 0.0, 32.0, 32.0]]),),
        torch.tensor([[[0.0, 0.0, 48.0, 32.0]]]),
        torch.zeros(1, 1, dtype=torch.int64),
        one,
        one,
        torch.ones(1),
        LossConfig(),
    )
    assert sums.box.item() == pytest.approx(0.25 - 0.055 + math.log(1.5) - 0.055, rel=1e-5)
    assert sums.iou.item() == pytest.approx(-2 / 3 * math.log(0.75) - 1 / 3 * math.log(0.25), rel=1e-5)
