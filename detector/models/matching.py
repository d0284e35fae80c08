"""Anchor assignment: which anchors are positive, and for which ground truth, for a whole batch at once.

B images, A anchors, G ground-truth boxes (padded, `gt_valid` tells the real ones). IoU is float32.

The rule is MMDetection's MaxIoUAssigner. An anchor is positive for the ground truth it overlaps most when that IoU is
at least `positive_iou` (the lowest ground-truth index among equals), negative when it is below `negative_iou`, and
ignored in between. With `low_quality_matches` every anchor that attains a ground truth's best IoU (all ties, valid
anchors only) then becomes positive for that ground truth, whatever it was before; where several ground truths claim
one anchor, the last of them has it. A ground truth that overlaps no anchor claims none.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from detector.boxes import box_area
from detector.config import LossConfig

POSITIVE, NEGATIVE, IGNORED = 1, 0, -1

# Elements of one working tensor. A CPU is fastest when the handful of them stays in its cache: one image of 201,600
# anchors at a time. A GPU wants the whole batch (16 images: 3.2 million), and has the memory.
_CPU_ELEMENTS = 2**18
_DEVICE_ELEMENTS = 2**25


@dataclass(frozen=True, eq=False)
class Matches:
    """The assignment of a batch."""

    state: Tensor
    """(B, A) int8: 1 positive, 0 negative, -1 ignored."""
    gt_index: Tensor
    """(B, A) int64: the ground truth of a positive anchor, 0 for every other."""


@torch.no_grad()
def match_anchors(
    anchors: Tensor, gt_boxes: Tensor, gt_valid: Tensor, anchor_valid: Tensor, config: LossConfig
) -> Matches:
    """Assign anchors (A, 4) to gt_boxes (B, G, 4); G may be 0.

    gt_valid (B, G) bool: padding is False and never matches. anchor_valid (B, A) bool: anchors wholly in the padding
    are False and become ignored. Never waits for the device; working memory does not grow with G.
    """
    images = gt_boxes.shape[0]
    elements = _CPU_ELEMENTS if anchors.device.type == "cpu" else _DEVICE_ELEMENTS
    at_once = max(1, elements // max(1, len(anchors)))
    # An empty box has IoU 0 with every anchor, so the padding needs no mask from here on.
    boxes = torch.where(gt_valid[..., None], gt_boxes.float(), 0.0)
    parts = [
        _match_images(anchors.float(), boxes[start : start + at_once], anchor_valid[start : start + at_once], config)
        for start in range(0, images, at_once)
    ]
    state, gt_index = zip(*parts, strict=True)
    return Matches(state=torch.cat(state), gt_index=torch.cat(gt_index))


def _match_images(anchors: Tensor, boxes: Tensor, anchor_valid: Tensor, config: LossConfig) -> tuple[Tensor, Tensor]:
    best_matches = _best_matches_one_by_one if anchors.device.type == "cpu" else _best_matches_in_chunks
    best_iou, best_gt, claimed_by = best_matches(anchors, boxes, anchor_valid, config.low_quality_matches)
    positive = (best_iou >= config.positive_iou) & (best_iou > 0)
    negative = (best_iou < config.negative_iou) & ~positive
    claimed = claimed_by > 0
    gt_index = torch.where(claimed, claimed_by - 1, torch.where(positive, best_gt, 0.0)).long()
    state = (positive | claimed).to(torch.int8) - (~(positive | claimed | negative)).to(torch.int8)
    return state.masked_fill_(~anchor_valid, IGNORED), gt_index


def _best_matches_one_by_one(
    anchors: Tensor, boxes: Tensor, anchor_valid: Tensor, low_quality_matches: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Per anchor (B, A) float32: best IoU, the first ground truth that attains it, and 1 + the last ground truth whose
    best anchor it is (0 for none).

    One ground truth of every image at a time over all anchors, in three working tensors. Indices are kept as float32
    (exact to 2^24) and chosen by maximum(index, comparison * new index): PyTorch's float arithmetic and float-valued
    comparisons are vectorised on CPUs, boolean masks are not and cost five times as much.
    """
    # The four columns each contiguous: strided reads halve the speed.
    anchor_x1, anchor_y1, anchor_x2, anchor_y2 = anchors.t().contiguous()
    anchor_area = box_area(anchors).clamp(min=torch.finfo(torch.float32).tiny)  # no 0 / 0 between empty boxes
    # An invalid anchor gets width 0 here, hence IoU 0 with everything.
    anchor_x2 = torch.where(anchor_valid, anchor_x2, anchor_x1)
    box_areas = box_area(boxes)

    best_iou = anchors.new_zeros(anchor_valid.shape)
    best_gt = torch.zeros_like(best_iou)
    claimed_by = torch.zeros_like(best_iou)
    iou, work, height = torch.empty_like(best_iou), torch.empty_like(best_iou), torch.empty_like(best_iou)
    for gt in range(boxes.shape[1]):
        x1, y1, x2, y2 = boxes[:, gt, :, None].unbind(1)
        torch.minimum(anchor_x2, x2, out=iou).sub_(torch.maximum(anchor_x1, x1, out=work)).clamp_(min=0)
        torch.minimum(anchor_y2, y2, out=height).sub_(torch.maximum(anchor_y1, y1, out=work)).clamp_(min=0)
        iou.mul_(height)
        iou.div_(torch.add(anchor_area, box_areas[:, gt, None], out=work).sub_(iou))

        torch.maximum(best_gt, torch.gt(iou, best_iou, out=work).mul_(gt), out=best_gt)
        torch.maximum(best_iou, iou, out=best_iou)
        if low_quality_matches:
            best_of_gt = iou.amax(dim=1, keepdim=True)
            best_of_gt = torch.where(best_of_gt > 0, best_of_gt, torch.inf)  # overlaps no anchor: equals none
            torch.maximum(claimed_by, torch.eq(iou, best_of_gt, out=work).mul_(gt + 1), out=claimed_by)
    return best_iou, best_gt, claimed_by


def _best_matches_in_chunks(
    anchors: Tensor, boxes: Tensor, anchor_valid: Tensor, low_quality_matches: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """`_best_matches_one_by_one` for accelerators: as many ground truths at a time as memory allows.

    There each operator is a launch by the host, however small: a chunk of C ground truths costs what one would. Working
    tensors are (B, C, A), all arithmetic is in the same order.
    """
    anchor_x1, anchor_y1, anchor_x2, anchor_y2 = anchors.t().contiguous()
    anchor_area = box_area(anchors).clamp(min=torch.finfo(torch.float32).tiny)
    anchor_x2 = torch.where(anchor_valid, anchor_x2, anchor_x1)[:, None]
    box_areas = box_area(boxes)[..., None]

    best_iou = anchors.new_zeros(anchor_valid.shape)
    best_gt = torch.zeros_like(best_iou)
    claimed_by = torch.zeros_like(best_iou)
    at_once = max(1, _DEVICE_ELEMENTS // max(1, best_iou.numel()))
    for start in range(0, boxes.shape[1], at_once):
        chunk = slice(start, start + at_once)
        x1, y1, x2, y2 = boxes[:, chunk, :, None].unbind(2)
        iou = torch.minimum(anchor_x2, x2).sub_(torch.maximum(anchor_x1, x1)).clamp_(min=0)
        iou.mul_(torch.minimum(anchor_y2, y2).sub_(torch.maximum(anchor_y1, y1)).clamp_(min=0))
        iou.div_(torch.add(anchor_area, box_areas[:, chunk]).sub_(iou))

        gt = torch.arange(start, start + iou.shape[1], dtype=torch.float32, device=iou.device)[:, None]
        best_of_chunk = iou.amax(dim=1)
        first = torch.where(iou == best_of_chunk[:, None], gt, torch.inf).amin(dim=1)
        best_gt = torch.where(best_of_chunk > best_iou, first, best_gt)
        best_iou = torch.maximum(best_iou, best_of_chunk)
        if low_quality_matches:
            best_of_gt = iou.amax(dim=2, keepdim=True)
            claims = (iou == best_of_gt) & (best_of_gt > 0)
            claimed_by = torch.maximum(claimed_by, torch.where(claims, gt + 1, 0.0).amax(dim=1))
    return best_iou, best_gt, claimed_by
