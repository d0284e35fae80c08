"""RetinaNet behind the port: backbone, feature pyramid, heads, anchors, losses and post-processing put together.

B images, H and W the padded height and width.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from detector.config import LossConfig, RetinaNetConfig
from detector.data.batching import Batch
from detector.errors import CheckpointError, ConfigError
from detector.models.anchors import AnchorGenerator
from detector.models.backbones import build_backbone, load_imagenet_weights
from detector.models.detector import Detections, Detector, LossSums, ScoringRow
from detector.models.fpn import FeaturePyramid
from detector.models.heads import HeadOutputs, RetinaNetHeads
from detector.models.losses import detection_losses
from detector.models.pixels import memory_format_of, normalise
from detector.models.postprocess import postprocess_rows

__all__ = ["HeadOutputs", "RetinaNet"]


class RetinaNet(Detector):
    """RetinaNet (arXiv 1708.02002) with or without the paper's IoU head.

    One seed gives equal initial weights with and without the IoU head, but for that head. Frozen parameters do not
    require gradients. The losses are 'cls', 'box' and 'iou' (exactly 0 without the IoU head), the normaliser is the sum
    over the images of max(positive anchors, 1).

    Args:
        loss: anchor assignment and loss weights; irrelevant to `detect`.
    """

    def __init__(self, config: RetinaNetConfig, num_classes: int, loss: LossConfig | None = None) -> None:
        super().__init__()
        if num_classes < 1:
            raise ConfigError("must be at least 1", field="num_classes", value=num_classes)
        self.config = config
        self.num_classes = num_classes
        self.loss = loss or LossConfig()
        self.anchors = AnchorGenerator(config.anchors)
        self.backbone = build_backbone(config.backbone)
        self.fpn = FeaturePyramid(self.backbone.channels, config.fpn_channels, config.tower_norm)
        self.heads = RetinaNetHeads(config, num_classes)

    def forward(self, images: Tensor) -> HeadOutputs:
        """Outputs for every anchor, in the order of `anchors`, of normalised images (B, 3, H, W) float32.

        H and W are multiples of 32; images are RGB, zero padded at the right and bottom.
        """
        outputs: HeadOutputs = self.heads(self.fpn(self.backbone(images)))
        return outputs

    def losses(self, batch: Batch) -> LossSums:
        outputs, anchors, anchor_valid = self._run(batch)
        sums = detection_losses(
            outputs, anchors, batch.boxes, batch.labels, batch.valid, anchor_valid, batch.image_weight, self.loss
        )
        weighted = {
            "cls": sums.cls,
            "box": sums.box * self.loss.box_weight,
            "iou": sums.iou * self.loss.iou_weight,
        }
        return LossSums(weighted, sums.normaliser)

    def detect(self, batch: Batch, rows: Sequence[ScoringRow]) -> list[list[Detections]]:
        outputs, anchors, anchor_valid = self._run(batch)
        truth = None
        if any(row.oracle for row in rows):
            truth = [boxes[valid] for boxes, valid in zip(batch.boxes, batch.valid, strict=True)]
        with torch.autocast(batch.images.device.type, enabled=False):
            return postprocess_rows(outputs, anchors, anchor_valid, batch.sizes, rows, truth)

    def load_initial_weights(self, file: Path | None) -> None:
        if self.config.backbone.weights == "none":
            return
        if file is None:
            raise CheckpointError("no file of ImageNet weights was given", field="model.backbone.weights")
        load_imagenet_weights(self.backbone, self.config.backbone.name, file)

    def _run(self, batch: Batch) -> tuple[HeadOutputs, tuple[Tensor, ...], Tensor]:
        """Outputs, anchors (A_l, 4) of every level and (B, A) bool, False for anchors wholly in the padding."""
        outputs = self(normalise(batch.images, batch.sizes, memory_format=memory_format_of(self.backbone)))
        anchors = self.anchors(outputs.feature_shapes, batch.images.device)
        return outputs, anchors, self.anchors.inside_mask(anchors, batch.sizes)


def build(config: RetinaNetConfig, loss: LossConfig, num_classes: int) -> Detector:
    """RetinaNet, for `build_detector`."""
    return RetinaNet(config, num_classes, loss)
