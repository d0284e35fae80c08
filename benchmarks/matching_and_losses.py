"""P11: anchor assignment and losses with their gradients, alone, against torchvision's loops over the images.

Ours includes the IoU loss and its targets, which torchvision does not have.
"""

from dataclasses import replace

import torch
from torch import Tensor

from benchmarks import torchvision_detector
from benchmarks.plain import plain_losses
from benchmarks.rows import AnyRow, NotRun, Row
from benchmarks.settings import Settings
from benchmarks.timing import interleaved, seconds
from benchmarks.workloads import FULL_SIZE, HeadCase, to_device, trained_outputs, training_batch
from detector.config import LossConfig
from detector.data.batching import Batch
from detector.models.heads import HeadOutputs
from detector.models.losses import detection_losses

MOST_BOXES = 60


def measure(settings: Settings) -> list[AnyRow]:
    """P11."""
    images = 16 if settings.on_gpu else 4
    size = settings.size(FULL_SIZE, FULL_SIZE)
    checked = check(settings)
    case = to_device(_batched(size, images), settings.device)
    batch = training_batch(images, size, most_boxes=MOST_BOXES).to(settings.device)
    truth = torchvision_detector.targets(batch)
    ours, other = interleaved(
        seconds(lambda: our_losses(case, batch), settings.device),
        seconds(lambda: their_losses(case, truth), settings.device),
        repeats=settings.repeats(20 if settings.on_gpu else 8),
        warm_up=2 if settings.on_gpu else 1,
    )
    anchors = case.anchor_valid.shape[1]
    shape = settings.describe(f"{images} x {anchors:,} anchors, 1 to {MOST_BOXES} objects", full=settings.on_gpu)
    rows: list[AnyRow] = [
        Row(
            key="P11",
            what="matching and losses, gradients included",
            size=shape,
            kind="speed-up",
            unit="s",
            ours=ours,
            other=other,
            other_name="torchvision",
            goal=settings.goal(5.0, at_least=True),
            goal_text="5x and more",
            checked=checked,
        )
    ]
    if not settings.on_gpu:
        rows.append(NotRun("P11", "matching and losses on a GPU, batch 16", "needs a GPU"))
    return rows


def our_losses(case: HeadCase, batch: Batch) -> Tensor:
    """Loss with its gradients; returns the sum, as a tensor on the device."""
    outputs = _leaves(case.outputs)
    sums = detection_losses(
        outputs,
        case.anchors,
        batch.boxes,
        batch.labels,
        batch.valid,
        case.anchor_valid,
        batch.image_weight,
        LossConfig(),
    )
    total = (sums.cls + sums.box + sums.iou) / sums.normaliser
    total.backward()
    return total.detach()


def their_losses(case: HeadCase, truth: list[dict[str, Tensor]]) -> Tensor:
    """torchvision's, with its gradients."""
    total = torchvision_detector.losses(_leaves(case.outputs), case.anchors, truth)
    total.backward()
    return total.detach()


def check(settings: Settings) -> str:
    """Our sums on the device, in float32, against the definition in float64 on the CPU; AssertionError if they differ.

    On images small enough for the definition. The boxes are anchors moved a little: a small box within many anchors has
    its best IoU with all of them, up to rounding, and which of these ties float32 sees is chance.
    """
    size = (96, 128)
    case, batch = _batched(size, 3), training_batch(3, size, most_boxes=7)
    generator = torch.Generator().manual_seed(0)
    anchors = torch.cat(case.anchors[:3])
    chosen = anchors[torch.randint(len(anchors), (3, 7), generator=generator)]
    sides = (chosen[..., 2:] - chosen[..., :2]).repeat(1, 1, 2)
    moved = chosen + 0.1 * sides * torch.rand(3, 7, 4, generator=generator)
    batch = replace(batch, boxes=torch.where(batch.valid[..., None], moved, 0.0))
    here, there = to_device(case, settings.device), batch.to(settings.device)
    sums = detection_losses(
        here.outputs,
        here.anchors,
        there.boxes,
        there.labels,
        there.valid,
        here.anchor_valid,
        there.image_weight,
        LossConfig(),
    )
    worst = 0.0
    for found, expected in zip(sums, plain_losses(case, batch, LossConfig()), strict=True):
        worst = max(worst, abs(float(found) - expected) / max(abs(expected), 1.0))
    if worst > 1e-4:
        raise AssertionError(f"the losses differ from their definition by {worst:.1e}")
    return f"loss sums within {worst:.0e} of the definition in float64"


def _batched(size: tuple[int, int], images: int) -> HeadCase:
    """The outputs for one image, repeated: the losses' cost does not depend on the values."""
    case = trained_outputs(size)

    def repeat(levels: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(level.expand(images, *level.shape[1:]).contiguous() for level in levels)

    assert case.outputs.iou_logits is not None
    outputs = HeadOutputs(
        repeat(case.outputs.cls_logits),
        repeat(case.outputs.box_deltas),
        repeat(case.outputs.iou_logits),
        case.outputs.feature_shapes,
    )
    return HeadCase(
        outputs, case.anchors, case.anchor_valid.expand(images, -1).contiguous(), case.image_sizes.expand(images, 2)
    )


def _leaves(outputs: HeadOutputs) -> HeadOutputs:
    """The same tensors as a network would hand them over: with gradients wanted, and none there yet."""

    def leaves(levels: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(level.detach().requires_grad_() for level in levels)

    assert outputs.iou_logits is not None
    return HeadOutputs(
        leaves(outputs.cls_logits), leaves(outputs.box_deltas), leaves(outputs.iou_logits), outputs.feature_shapes
    )
