"""The three losses of the IoU-aware RetinaNet (the paper's Eq. 1 to 4), as sums over a batch.

B images, A anchors, A_l anchors of one level, C classes, G ground-truth boxes. Everything is float32 inside, whatever
the autocast dtype. Anchors that do not count are masked (outputs are finite: what diverges is an error anyway), never
picked out by boolean indexing: shapes do not depend on the data, so a step never waits for the device.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, assert_never

import torch
from torch import Tensor
from torch.nn import functional

from detector.boxes import elementwise_iou
from detector.config import LossConfig
from detector.models.box_coder import decode, encode
from detector.models.heads import HeadOutputs
from detector.models.matching import IGNORED, POSITIVE, match_anchors

NO_CLASS, NOT_COUNTED = -1, -2
"""Class targets besides 0 to C - 1: a negative anchor, and one that takes no part in the classification loss."""

# Logits taken at once in the focal loss: each of its few temporaries is then 256 KB, which stays in a CPU's cache, or
# 256 MB on a GPU.
_CPU_LOGITS = 2**16
_DEVICE_LOGITS = 2**26


class DetectionLosses(NamedTuple):
    """Unweighted, unnormalised sums over the batch: scalar float32 tensors.

    The training loss is (cls + box_weight box + iou_weight iou) / N, where N is `normaliser`, summed over the global
    batch or taken from one device as `LossConfig.normaliser` says.
    """

    cls: Tensor
    box: Tensor
    iou: Tensor
    """Exactly 0 for the baseline without an IoU head."""
    normaliser: Tensor
    """Sum over the images of max(positive anchors, 1)."""


def detection_losses(
    outputs: HeadOutputs,
    anchors: Sequence[Tensor],
    gt_boxes: Tensor,
    gt_labels: Tensor,
    gt_valid: Tensor,
    anchor_valid: Tensor,
    image_weight: Tensor,
    config: LossConfig,
) -> DetectionLosses:
    """Match the anchors (A_l, 4) of every level to gt_boxes (B, G, 4) float32, resized frame, and sum the losses.

    gt_labels (B, G) int64; gt_valid (B, G) bool and anchor_valid (B, A) bool as in `match_anchors`; image_weight (B,)
    is 1, or 0 for a filler image that counts for nothing, the normaliser included. G may be 0. Without a positive
    anchor `box` and `iou` are exactly 0 and every gradient is finite.
    """
    with torch.autocast(device_type=gt_boxes.device.type, enabled=False):
        if gt_boxes.shape[1] == 0:  # one invalid box, so that every anchor has something to point at
            gt_boxes, gt_labels = functional.pad(gt_boxes, (0, 0, 0, 1)), functional.pad(gt_labels, (0, 1))
            gt_valid = functional.pad(gt_valid, (0, 1))
        flat_anchors = torch.cat(tuple(anchors))
        matches = match_anchors(flat_anchors, gt_boxes, gt_valid, anchor_valid, config)
        counted = (image_weight > 0)[:, None]
        positive = (matches.state == POSITIVE) & counted

        class_target = torch.where(positive, gt_labels.gather(1, matches.gt_index), NO_CLASS)
        class_target = class_target.masked_fill((matches.state == IGNORED) | ~counted, NOT_COUNTED)
        cls_per_level = [
            sigmoid_focal_loss(logits, target, config.focal_alpha, config.focal_gamma)
            for logits, target in _by_level(outputs.cls_logits, class_target)
        ]

        # From here on an anchor that is not positive regresses onto itself: loss 0, gradient 0, all values finite.
        deltas = torch.where(positive[..., None], torch.cat([d.float() for d in outputs.box_deltas], dim=1), 0.0)
        matched = gt_boxes.float().gather(1, matches.gt_index[..., None].expand(-1, -1, 4))
        matched = torch.where(positive[..., None], matched, flat_anchors)
        box = smooth_l1(deltas, encode(flat_anchors, matched), config.smooth_l1_beta)

        if outputs.iou_logits is None:
            iou = torch.zeros_like(box)
        else:
            with torch.set_grad_enabled(config.iou_target_gradient and torch.is_grad_enabled()):
                iou_target = elementwise_iou(decode(flat_anchors, deltas), matched)
            iou = iou_prediction_loss(torch.cat(outputs.iou_logits, dim=1), iou_target, positive, config.iou_loss)

        per_image = positive.sum(dim=1).clamp(min=1) * counted[:, 0]
        return DetectionLosses(
            cls=torch.stack(cls_per_level).sum(), box=box, iou=iou, normaliser=per_image.sum().to(torch.float32)
        )


def _by_level(levels: Sequence[Tensor], flat: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Pair each level's outputs (B, A_l, ...) with its part of `flat` (B, A)."""
    return list(zip(levels, flat.split([level.shape[1] for level in levels], dim=1), strict=True))


def sigmoid_focal_loss(logits: Tensor, class_target: Tensor, alpha: float, gamma: float) -> Tensor:
    """Sum () float32 of the focal loss (arXiv 1708.02002, Eq. 5) over logits (..., C) of counted anchors.

    class_target (...,) int64 is 0 to C - 1, `NO_CLASS` (all C targets are 0) or `NOT_COUNTED`. The value equals
    `torchvision.ops.sigmoid_focal_loss` of the one-hot targets to float32 accuracy; its second derivative does not
    exist. One pass computes loss and gradient, so that the gradient is all that is kept for the backward pass.
    """
    total: Tensor = _SigmoidFocalLoss.apply(logits, class_target, alpha, gamma)
    return total


def smooth_l1(deltas: Tensor, targets: Tensor, beta: float) -> Tensor:
    """Sum () float32 of smooth L1 over deltas and targets of equal shape: d^2 / (2 beta) below beta, |d| - beta / 2."""
    return functional.smooth_l1_loss(deltas.float(), targets.float(), beta=beta, reduction="sum")


def iou_prediction_loss(logits: Tensor, targets: Tensor, positive: Tensor, kind: Literal["bce", "l2", "l1"]) -> Tensor:
    """Sum () float32 of the IoU loss over the positive anchors.

    logits and targets (...,), the latter in [0, 1], positive (...,) bool. With q = sigmoid(logit): 'bce' is the cross
    entropy against a soft target (Eq. 3; its smallest value is the target's entropy, not 0), 'l2' (q - target)^2
    without a half, 'l1' |q - target|. Targets that require gradients get them.
    """
    logits = torch.where(positive, logits.float(), 0.0)
    match kind:
        case "bce":
            losses = functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        case "l2":
            losses = (logits.sigmoid() - targets).square()
        case "l1":
            losses = (logits.sigmoid() - targets).abs()
        case _:
            assert_never(kind)
    return torch.where(positive, losses, 0.0).sum()


class _SigmoidFocalLoss(torch.autograd.Function):
    """Focal loss and its gradient in one blockwise pass, without a one-hot target or saved intermediates.

    Autograd over the plain form keeps about ten tensors of the size of the logits (1 GB each for 16 images, 201,600
    anchors and 80 classes) and passes over memory some forty times. Nearly every target is 0: the dense pass is the
    loss of negatives, where the one entry of each positive anchor weighs nothing. Those few entries are taken apart.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, class_target: Tensor, alpha: float, gamma: float) -> Tensor:
        rows = logits.reshape(-1, logits.shape[-1])
        gradient = torch.empty_like(rows, memory_format=torch.contiguous_format) if ctx.needs_input_grad[0] else None
        target = class_target.reshape(-1, 1)
        weight = torch.where(target == NOT_COUNTED, 0.0, 1 - alpha)
        is_negative, column = (target < 0).float(), target.clamp(min=0)

        # log p(x) = log(1 - p)(-x): a positive entry is a negative one with the sign of its logit turned.
        positive_logits = torch.where(target >= 0, -rows.gather(1, column).float(), -torch.inf)
        value, positive_slope = _focal_term(*_focal_factors(positive_logits, gamma), gamma)
        sums = [alpha * value]
        block = max(1, (_CPU_LOGITS if rows.device.type == "cpu" else _DEVICE_LOGITS) // rows.shape[1])
        for start in range(0, len(rows), block):
            part = slice(start, start + block)
            p, cross_entropy, modulation = _focal_factors(rows[part].float(), gamma)
            modulation.mul_(weight[part])
            at_column = modulation.gather(1, column[part]).mul_(is_negative[part])
            modulation.scatter_(1, column[part], at_column)
            out = None if gradient is None else gradient[part]
            sums.append(_focal_term(p, cross_entropy, modulation, gamma, out)[0])
        if gradient is not None:
            gradient.scatter_add_(1, column, (-alpha * positive_slope).to(gradient.dtype))
            ctx.save_for_backward(gradient.view(logits.shape))
        return torch.stack(sums).sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_output, None, None, None


def _focal_factors(logits: Tensor, gamma: float) -> tuple[Tensor, Tensor, Tensor]:
    """p = sigmoid(logit), -log(1 - p) and p^gamma, float32; 0 all three at a logit of -inf."""
    p = torch.sigmoid(logits)
    return p, functional.softplus(logits), p.pow(gamma)


def _focal_term(
    p: Tensor, cross_entropy: Tensor, modulation: Tensor, gamma: float, out: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Sum () of modulation * cross_entropy, and the derivative of each entry in its logit, written to `out` if given.

    modulation is p^gamma times a weight, which may be 0.
    """
    slope = torch.addcmul(p, 1 - p, cross_entropy, value=gamma)
    return torch.sum(modulation * cross_entropy), torch.mul(slope, modulation, out=out)
