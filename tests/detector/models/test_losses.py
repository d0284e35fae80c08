"""The losses: hand-computed values, a plain autograd reference, and what must not count."""

import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch.nn import functional
from torchvision import ops

from detector.boxes import elementwise_iou
from detector.config import AnchorConfig, LossConfig
from detector.models import losses
from detector.models.anchors import AnchorGenerator
from detector.models.box_coder import decode, encode
from detector.models.heads import HeadOutputs
from detector.models.losses import (
    NO_CLASS,
    NOT_COUNTED,
    DetectionLosses,
    detection_losses,
    iou_prediction_loss,
    sigmoid_focal_loss,
    smooth_l1,
)
from detector.models.matching import match_anchors

CLASSES = 3


def plain_focal(logits: torch.Tensor, target: torch.Tensor, alpha: float, gamma: float) -> torch.Tensor:
    """torchvision's elementwise loss over one-hot targets, without the anchors that do not count."""
    one_hot = (target[..., None] == torch.arange(logits.shape[-1])).to(logits.dtype)
    loss = ops.sigmoid_focal_loss(logits, one_hot, alpha=alpha, gamma=gamma)
    return loss[target != NOT_COUNTED].sum()


class TestFocal:
    def test_by_hand(self) -> None:
        # p = 0.5 everywhere: 0.5^2 log 2, weighted 0.25 for the one positive and 0.75 for the three negatives.
        loss = sigmoid_focal_loss(torch.zeros(3, 2), torch.tensor([1, NO_CLASS, NOT_COUNTED]), 0.25, 2.0)
        assert loss.item() == pytest.approx((0.25 + 3 * 0.75) * 0.25 * math.log(2))
        assert loss.dtype == torch.float32

    @pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.5, 0.0), (0.75, 1.5), (1.0, 5.0), (0.0, 0.5)])
    @pytest.mark.parametrize("block", [1, 64, 2**16])
    def test_equals_the_plain_form(
        self, alpha: float, gamma: float, block: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(losses, "_CPU_LOGITS", block)
        torch.manual_seed(0)
        logits = (torch.randn(2, 40, 5) * 4).requires_grad_()
        target = torch.randint(-2, 5, (2, 40))
        plain = plain_focal(logits, target, alpha, gamma)
        (expected,) = torch.autograd.grad(3 * plain, logits)
        loss = sigmoid_focal_loss(logits, target, alpha, gamma)
        (found,) = torch.autograd.grad(3 * loss, logits)
        torch.testing.assert_close(loss, plain, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)

    def test_gradient_against_finite_differences(self) -> None:
        logits = torch.tensor([[0.3, -2.0, 4.0]], requires_grad=True)
        target = torch.tensor([2])
        (gradient,) = torch.autograd.grad(sigmoid_focal_loss(logits, target, 0.25, 2.0), logits)
        double = logits.detach().double()
        for column in range(3):
            step = torch.zeros_like(double)
            step[0, column] = 1e-6
            rise = plain_focal(double + step, target, 0.25, 2.0) - plain_focal(double - step, target, 0.25, 2.0)
            assert gradient[0, column].item() == pytest.approx(rise.item() / 2e-6, rel=1e-4)

    def test_extreme_logits_stay_finite(self) -> None:
        logits = torch.tensor([[1e4, -1e4], [1e4, -1e4], [1e4, -1e4]], requires_grad=True)
        loss = sigmoid_focal_loss(logits, torch.tensor([1, NO_CLASS, NOT_COUNTED]), 0.25, 2.0)
        loss.backward()
        assert loss.item() == pytest.approx(0.25 * 1e4 + 2 * 0.75 * 1e4)
        assert logits.grad is not None
        assert logits.grad.tolist() == [[0.75, -0.25], [0.75, 0.0], [0.0, 0.0]]

    def test_a_confident_right_answer_is_not_lost_in_rounding(self) -> None:
        logits = torch.full((1000, 2), -20.0)
        logits[:, 1] = 20.0
        loss = sigmoid_focal_loss(logits, torch.ones(1000, dtype=torch.int64), 0.25, 0.0)
        assert loss.item() == pytest.approx(1000 * math.log1p(math.exp(-20)), rel=1e-4)

    def test_half_precision_logits(self) -> None:
        torch.manual_seed(0)
        logits = torch.randn(30, 4).bfloat16().requires_grad_()
        target = torch.randint(-2, 4, (30,))
        loss = sigmoid_focal_loss(logits, target, 0.25, 2.0)
        torch.testing.assert_close(loss, plain_focal(logits.float(), target, 0.25, 2.0), rtol=1e-5, atol=1e-6)
        (gradient,) = torch.autograd.grad(loss, logits)
        assert gradient.dtype == torch.bfloat16

    def test_no_anchors(self) -> None:
        logits = torch.zeros(2, 0, 3, requires_grad=True)
        loss = sigmoid_focal_loss(logits, torch.zeros(2, 0, dtype=torch.int64), 0.25, 2.0)
        loss.backward()
        assert loss.item() == 0.0

    def test_strided_logits(self) -> None:
        torch.manual_seed(0)
        logits = torch.randn(4, 6, 2).permute(2, 1, 0).requires_grad_()
        target = torch.randint(-2, 4, (2, 6))
        (found,) = torch.autograd.grad(sigmoid_focal_loss(logits, target, 0.25, 2.0), logits)
        (expected,) = torch.autograd.grad(plain_focal(logits, target, 0.25, 2.0), logits)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_smooth_l1_by_hand() -> None:
    # |d| = 0.05 < beta: d^2 / (2 beta); |d| = 1: 1 - beta / 2.
    loss = smooth_l1(torch.tensor([[0.05, -1.0, 0.0, 0.0]]), torch.zeros(1, 4), 0.11)
    assert loss.item() == pytest.approx(0.05**2 / 0.22 + 1 - 0.055)


class TestIouPrediction:
    positive = torch.tensor([True, True, False])
    logits = torch.tensor([0.0, math.log(3), 5.0])  # q = 1/2, 3/4
    targets = torch.tensor([0.8, 0.25, 0.5])

    def test_by_hand(self) -> None:
        bce = -math.log(0.5) - (0.25 * math.log(0.75) + 0.75 * math.log(0.25))
        expected = {"bce": bce, "l2": 0.3**2 + 0.5**2, "l1": 0.3 + 0.5}
        for kind in ("bce", "l2", "l1"):
            loss = iou_prediction_loss(self.logits, self.targets, self.positive, kind)
            assert loss.item() == pytest.approx(expected[kind], rel=1e-6)

    def test_target_gradient_of_bce_is_the_papers(self) -> None:
        targets = self.targets.clone().requires_grad_()
        iou_prediction_loss(self.logits, targets, self.positive, "bce").backward()
        assert targets.grad is not None
        torch.testing.assert_close(targets.grad, torch.tensor([0.0, -math.log(3), 0.0]))  # log((1 - q) / q)

    @pytest.mark.parametrize("kind", ["bce", "l2", "l1"])
    def test_masked_entries_may_hold_anything(self, kind: str) -> None:
        logits = torch.tensor([0.5, float("inf"), float("nan")], requires_grad=True)
        positive = torch.tensor([True, False, False])
        iou_prediction_loss(logits, self.targets, positive, kind).backward()  # type: ignore[arg-type]
        assert logits.grad is not None
        assert logits.grad.isfinite().all()
        assert logits.grad[1:].tolist() == [0.0, 0.0]


class Case(NamedTuple):
    outputs: HeadOutputs
    anchors: tuple[torch.Tensor, ...]
    gt_boxes: torch.Tensor
    gt_labels: torch.Tensor
    gt_valid: torch.Tensor
    anchor_valid: torch.Tensor
    image_weight: torch.Tensor


def make_case(images: int = 3, *, iou_head: bool = True, seed: int = 0) -> Case:
    """Random outputs on a 64 x 64 batch whose first image is 64 x 40, with 2, 1, 0, 2 ... boxes an image."""
    generator = torch.Generator().manual_seed(seed)
    anchors = AnchorGenerator(AnchorConfig())
    levels = anchors([(8, 8), (4, 4), (2, 2), (1, 1), (1, 1)], "cpu")
    sizes = torch.tensor([[64, 40]] + [[64, 64]] * (images - 1))

    def random(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return (torch.randn(*shape, generator=generator) * scale).requires_grad_()

    outputs = HeadOutputs(
        tuple(random(images, len(level), CLASSES) for level in levels),
        tuple(random(images, len(level), 4, scale=0.3) for level in levels),
        tuple(random(images, len(level)) for level in levels) if iou_head else None,
    )
    boxes = torch.tensor([[4.0, 6.0, 38.0, 40.0], [10.0, 30.0, 22.0, 62.0]]).repeat(images, 1, 1)
    valid = torch.tensor([[True, True], [False, True], [False, False]] * images)[:images]
    return Case(
        outputs=outputs,
        anchors=levels,
        gt_boxes=boxes * valid[..., None],
        gt_labels=torch.tensor([[2, 0]]).repeat(images, 1),
        gt_valid=valid,
        anchor_valid=anchors.inside_mask(levels, sizes),
        image_weight=torch.ones(images),
    )


def every_output(outputs: HeadOutputs) -> list[torch.Tensor]:
    return [*outputs.cls_logits, *outputs.box_deltas, *(outputs.iou_logits or ())]


def mapped(outputs: HeadOutputs, function: Callable[[torch.Tensor], torch.Tensor]) -> HeadOutputs:
    assert outputs.iou_logits is not None
    return HeadOutputs(*(tuple(map(function, levels)) for levels in outputs[:3]))  # type: ignore[arg-type]


def gradients(loss: torch.Tensor, outputs: HeadOutputs) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, every_output(outputs), materialize_grads=True, retain_graph=True))


def plain_losses(case: Case, config: LossConfig) -> DetectionLosses:
    """Eq. 1 to 4 image by image with boolean indexing, as a reader of the paper would write them."""
    anchors = torch.cat(case.anchors)
    logits, deltas = torch.cat(case.outputs.cls_logits, 1), torch.cat(case.outputs.box_deltas, 1)
    matches = match_anchors(anchors, case.gt_boxes, case.gt_valid, case.anchor_valid, config)
    cls, box, iou, normaliser = (torch.zeros(()) for _ in range(4))
    for image in range(len(logits)):
        if case.image_weight[image] == 0:
            continue
        positive = matches.state[image] == 1
        gt = matches.gt_index[image][positive]
        target = torch.where(matches.state[image] == -1, NOT_COUNTED, torch.tensor(NO_CLASS))
        target[positive] = case.gt_labels[image][gt]
        cls = cls + plain_focal(logits[image], target, config.focal_alpha, config.focal_gamma)
        boxes = case.gt_boxes[image][gt]
        predicted = deltas[image][positive]
        difference = (predicted - encode(anchors[positive], boxes)).abs()
        beta = config.smooth_l1_beta
        box = box + torch.where(difference < beta, difference**2 / (2 * beta), difference - beta / 2).sum()
        quality = elementwise_iou(decode(anchors[positive], predicted), boxes)
        quality = quality if config.iou_target_gradient else quality.detach()
        if case.outputs.iou_logits is not None:
            score = torch.cat(case.outputs.iou_logits, 1)[image][positive]
            if config.iou_loss == "bce":
                iou = (
                    iou - (quality * functional.logsigmoid(score) + (1 - quality) * functional.logsigmoid(-score)).sum()
                )
            else:
                gap = (score.sigmoid() - quality).abs()
                iou = iou + (gap**2 if config.iou_loss == "l2" else gap).sum()
        normaliser = normaliser + positive.sum().clamp(min=1)
    return DetectionLosses(cls, box, iou, normaliser)


@pytest.mark.parametrize("target_gradient", [False, True])
@pytest.mark.parametrize("kind", ["bce", "l2", "l1"])
def test_sums_and_gradients_equal_the_plain_form(kind: str, target_gradient: bool) -> None:
    config = LossConfig(iou_loss=kind, iou_target_gradient=target_gradient)  # type: ignore[arg-type]
    case = make_case(4)
    found, expected = detection_losses(*case, config), plain_losses(case, config)
    assert expected.normaliser > 10
    for name in ("cls", "box", "iou", "normaliser"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-5, atol=1e-5)
        assert getattr(found, name).dtype == torch.float32
    for name in ("cls", "box", "iou"):
        pairs = zip(
            gradients(getattr(found, name), case.outputs), gradients(getattr(expected, name), case.outputs), strict=True
        )
        for ours, theirs in pairs:
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_iou_target_is_detached_by_default() -> None:
    case = make_case()
    sums = detection_losses(*case, LossConfig())
    through = torch.autograd.grad(sums.iou, case.outputs.box_deltas, materialize_grads=True)
    assert all((g == 0).all() for g in through)
    sums = detection_losses(*case, LossConfig(iou_target_gradient=True))
    through = torch.autograd.grad(sums.iou, case.outputs.box_deltas, materialize_grads=True)
    assert any((g != 0).any() for g in through)


@pytest.mark.parametrize("target_gradient", [False, True])
@pytest.mark.parametrize("padded_boxes", [0, 2])
def test_d6_no_positives(padded_boxes: int, target_gradient: bool) -> None:
    case = make_case(2)
    case = case._replace(
        gt_boxes=torch.zeros(2, padded_boxes, 4),
        gt_labels=torch.zeros(2, padded_boxes, dtype=torch.int64),
        gt_valid=torch.zeros(2, padded_boxes, dtype=torch.bool),
    )
    sums = detection_losses(*case, LossConfig(iou_target_gradient=target_gradient))
    assert sums.box.item() == 0.0
    assert sums.iou.item() == 0.0
    assert sums.normaliser.item() == 2.0
    found = gradients(sums.cls + sums.box + sums.iou, case.outputs)
    assert all(gradient.isfinite().all() for gradient in found)
    assert all((gradient == 0).all() for gradient in found[5:])
    assert all((gradient != 0).any() for gradient in found[:5])


def test_baseline_has_no_iou_loss_and_the_same_others() -> None:
    with_head, without = make_case(), make_case(iou_head=False)
    sums, baseline = detection_losses(*with_head, LossConfig()), detection_losses(*without, LossConfig())
    assert baseline.iou.item() == 0.0
    assert (baseline.cls, baseline.box, baseline.normaliser) == (sums.cls, sums.box, sums.normaliser)


def test_filler_images_count_for_nothing() -> None:
    case = make_case(3)
    weights = torch.tensor([1.0, 0.0, 1.0])
    found = detection_losses(*case._replace(image_weight=weights), LossConfig())
    kept = [0, 2]
    alone = Case(
        mapped(case.outputs, lambda level: level[kept]),
        case.anchors,
        *(tensor[kept] for tensor in case[2:]),
    )
    for ours, theirs in zip(found, detection_losses(*alone, LossConfig()), strict=True):
        torch.testing.assert_close(ours, theirs)
    for gradient in gradients(found.cls + found.box + found.iou, case.outputs):
        assert (gradient[1] == 0).all()
    nothing = detection_losses(*case._replace(image_weight=torch.zeros(3)), LossConfig())
    assert [value.item() for value in nothing] == [0.0, 0.0, 0.0, 0.0]


def test_an_image_without_positives_adds_one_to_the_normaliser() -> None:
    case = make_case(3)
    matches = match_anchors(torch.cat(case.anchors), case.gt_boxes, case.gt_valid, case.anchor_valid, LossConfig())
    positives = (matches.state == 1).sum(dim=1).tolist()
    assert positives[2] == 0
    assert detection_losses(*case, LossConfig()).normaliser.item() == positives[0] + positives[1] + 1


def test_padding_of_image_and_ground_truth_changes_nothing() -> None:
    case = make_case(2)
    expected = detection_losses(*case, LossConfig())
    more = case._replace(
        gt_boxes=functional.pad(case.gt_boxes, (0, 0, 0, 3)),
        gt_labels=functional.pad(case.gt_labels, (0, 3)),
        gt_valid=functional.pad(case.gt_valid, (0, 3)),
    )
    assert detection_losses(*more, LossConfig()) == expected
    # Outputs of anchors in the padding of the first image are free to be anything finite.
    outside = ~case.anchor_valid
    assert outside[0].any()
    masks = outside.split([len(level) for level in case.anchors], dim=1)
    wild = HeadOutputs(
        tuple(torch.where(m[..., None], 1e4, o) for m, o in zip(masks, case.outputs.cls_logits, strict=True)),
        tuple(torch.where(m[..., None], 1e4, o) for m, o in zip(masks, case.outputs.box_deltas, strict=True)),
        tuple(torch.where(m, 1e4, o) for m, o in zip(masks, case.outputs.iou_logits or (), strict=True)),
    )
    assert detection_losses(*case._replace(outputs=wild), LossConfig()) == expected


def test_is_float32_under_autocast_and_for_half_precision_outputs() -> None:
    case = make_case()
    half = mapped(case.outputs, lambda level: level.detach().bfloat16())
    rounded = mapped(half, torch.Tensor.float)
    expected = detection_losses(*case._replace(outputs=rounded), LossConfig())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = detection_losses(*case._replace(outputs=half), LossConfig())
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs)
