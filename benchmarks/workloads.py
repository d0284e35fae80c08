"""Inputs of the measurements: made up, with the sizes and the statistics of real ones, the same for both sides.

B images, A anchors, C classes, G ground-truth boxes. Everything follows from a seed.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from detector.boxes import pairwise_iou
from detector.config import AnchorConfig, ScoringConfig
from detector.data.batching import Batch
from detector.models.anchors import STRIDES, AnchorGenerator
from detector.models.box_coder import encode
from detector.models.detector import ScoringRow
from detector.models.heads import HeadOutputs

COCO_CLASSES = 80
FULL_SIZE = (800, 1333)
"""Height and width of a COCO image at [800, 1333]; padded to 800 x 1344 it has 201,600 anchors."""
_OBJECTS = 20  # of one image with outputs of a trained detector
BACKGROUND_LOGIT = (-7.5, 1.3)  # mean and deviation: 5,000 pairs above 0.05, as trained RetinaNets have on COCO


def scoring_rows(scoring: ScoringConfig) -> tuple[ScoringRow, ...]:
    """The twelve IoU-aware rows of Tables 3 and 4: 'none', and alpha 1.0 to 0."""
    rows = [ScoringRow(replace(scoring, confidence="none"))]
    rows += [ScoringRow(replace(scoring, confidence="alpha", alpha=tenths / 10)) for tenths in range(10, -1, -1)]
    return tuple(rows)


@dataclass(frozen=True)
class HeadCase:
    """The outputs for a batch, and what post-processing and losses need beside them."""

    outputs: HeadOutputs
    anchors: tuple[Tensor, ...]
    anchor_valid: Tensor
    image_sizes: Tensor


def padded(size: tuple[int, int]) -> tuple[int, int]:
    """Height and width rounded up to multiples of 32."""
    return -(-size[0] // 32) * 32, -(-size[1] // 32) * 32


def feature_shapes(size: tuple[int, int]) -> list[tuple[int, int]]:
    """(height, width) of P3 to P7 for a padded image."""
    height, width = padded(size)
    return [(-(-height // stride), -(-width // stride)) for stride in STRIDES]


def random_boxes(count: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """(count, 4) boxes of 8 to 500 pixels within an image; sizes as in COCO, where small ones are the most."""
    limits = torch.tensor([size[1], size[0]], dtype=torch.float32)
    centre = torch.rand(count, 2, generator=generator) * limits
    half = torch.exp(torch.rand(count, 2, generator=generator) * 4.1 + 1.4)
    first, second = (centre - half).clamp(min=0), torch.minimum(centre + half, limits)
    return torch.cat([first, torch.maximum(second, first + 1)], dim=1)


def trained_objects(
    size: tuple[int, int] = FULL_SIZE, classes: int = COCO_CLASSES, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """(G, 4) boxes and (G,) labels of the objects in the image that `trained_outputs` of the same arguments sees."""
    return _objects(size, classes, torch.Generator().manual_seed(seed))


def _objects(size: tuple[int, int], classes: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return random_boxes(_OBJECTS, size, generator), torch.randint(0, classes, (_OBJECTS,), generator=generator)


def trained_outputs(size: tuple[int, int] = FULL_SIZE, classes: int = COCO_CLASSES, seed: int = 0) -> HeadCase:
    """One image as a trained detector sees it: few objects that many anchors agree on, and a quiet background.

    An anchor that overlaps an object scores for its class the more the better it fits, its box is near the object's,
    its predicted IoU near the true one; every other class logit is noise around `BACKGROUND_LOGIT`.
    """
    generator = torch.Generator().manual_seed(seed)
    anchors = AnchorGenerator(AnchorConfig())(feature_shapes(size), "cpu")
    flat = torch.cat(anchors)
    objects, labels = _objects(size, classes, generator)
    overlap, owner = pairwise_iou(flat, objects).max(dim=1)
    mean, deviation = BACKGROUND_LOGIT
    cls_logits = torch.randn(len(flat), classes, generator=generator) * deviation + mean
    lift = torch.where(overlap > 0.3, 10 * overlap.clamp(max=0.8), 0.0)
    cls_logits[torch.arange(len(flat)), labels[owner]] += lift
    near = torch.where((overlap > 0.3)[:, None], objects[owner], flat)
    deltas = encode(flat, near) + 0.05 * torch.randn(len(flat), 4, generator=generator)
    quality = (overlap + 0.1 * torch.randn(len(flat), generator=generator)).clamp(0.02, 0.98)
    counts = [len(level) for level in anchors]
    return HeadCase(
        HeadOutputs(
            cls_logits=tuple(level[None] for level in cls_logits.split(counts)),
            box_deltas=tuple(level[None] for level in deltas.split(counts)),
            iou_logits=tuple(level[None] for level in quality.logit().split(counts)),
            feature_shapes=tuple(feature_shapes(size)),
        ),
        anchors,
        torch.ones(1, len(flat), dtype=torch.bool),
        torch.tensor([size]),
    )


def training_batch(
    images: int, size: tuple[int, int], classes: int = COCO_CLASSES, *, most_boxes: int = 20, seed: int = 0
) -> Batch:
    """A batch of noise images, all of one size, with 1 to `most_boxes` objects each, spread evenly."""
    generator = torch.Generator().manual_seed(seed)
    height, width = padded(size)
    pixels = torch.zeros(images, 3, height, width, dtype=torch.uint8)
    pixels[:, :, : size[0], : size[1]] = torch.randint(
        0, 256, (images, 3, *size), dtype=torch.uint8, generator=generator
    )
    counts = torch.linspace(1, most_boxes, images).round().long() if images > 1 else torch.tensor([most_boxes])
    valid = torch.arange(most_boxes) < counts[:, None]
    boxes = torch.stack([random_boxes(most_boxes, size, generator) for _ in range(images)])
    labels = torch.randint(0, classes, (images, most_boxes), generator=generator)
    return Batch(
        images=pixels,
        sizes=torch.tensor([size] * images),
        boxes=torch.where(valid[..., None], boxes, 0.0),
        labels=torch.where(valid, labels, 0),
        valid=valid,
        image_index=torch.arange(images),
        image_weight=torch.ones(images),
    )


def to_device(case: HeadCase, device: torch.device) -> HeadCase:
    """The same case on a device."""

    def levels(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(tensor.to(device) for tensor in tensors)

    outputs = case.outputs
    moved = HeadOutputs(
        levels(outputs.cls_logits),
        levels(outputs.box_deltas),
        None if outputs.iou_logits is None else levels(outputs.iou_logits),
        outputs.feature_shapes,
    )
    return HeadCase(moved, levels(case.anchors), case.anchor_valid.to(device), case.image_sizes.to(device))
