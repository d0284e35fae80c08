"""torchvision's `retinanet_resnet50_fpn` behind the port: its network, anchors, losses and post-processing as they are.

B images, H and W the padded height and width, A anchors, C classes. Its resizing is left out, as batches are resized
and padded before; its labels are 0 to C - 1 here.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import resnet50
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.models.detection.image_list import ImageList
from torchvision.ops.feature_pyramid_network import LastLevelP6P7
from torchvision.ops.misc import FrozenBatchNorm2d

from detector.config import LossConfig, ScoringConfig, TorchvisionRetinaNetConfig
from detector.data.batching import Batch
from detector.errors import CheckpointError, ConfigError
from detector.models.backbones import load_imagenet_weights
from detector.models.detector import Detections, Detector, LossSums, ScoringRow
from detector.models.pixels import memory_format_of

_ALL_LAYERS = 5


class TorchvisionRetinaNet(Detector):
    """torchvision's RetinaNet (`torchvision.models.detection.retinanet_resnet50_fpn`), trained from a Batch.

    With ImageNet weights the BatchNorm statistics and affine parameters are frozen, and so are the lower layers. From
    scratch everything is trained, BatchNorm on each worker's own images: results then depend on the number of workers.

    The losses are 'cls' and 'box', as sums over the images of what torchvision divides by an image's positive anchors;
    the normaliser is the number of images. So the training loss is torchvision's mean over the global batch.
    """

    def __init__(self, config: TorchvisionRetinaNetConfig, num_classes: int) -> None:
        super().__init__()
        if num_classes < 1:
            raise ConfigError("must be at least 1", field="num_classes", value=num_classes)
        self.config = config
        self.num_classes = num_classes
        pretrained = config.weights == "imagenet"
        # The steps of `retinanet_resnet50_fpn`, in its order: one seed gives its initial weights. It would not freeze
        # anything for ImageNet weights that are loaded afterwards.
        resnet = resnet50(weights=None, norm_layer=FrozenBatchNorm2d if pretrained else nn.BatchNorm2d)
        layers = config.trainable_layers if pretrained else _ALL_LAYERS
        extra = LastLevelP6P7(256, 256)
        backbone = _resnet_fpn_extractor(resnet, layers, returned_layers=[2, 3, 4], extra_blocks=extra)
        self.network = RetinaNet(backbone, num_classes)

    def losses(self, batch: Batch) -> LossSums:
        counted = (batch.image_weight > 0).nonzero()[:, 0]
        # A batch of fillers alone still takes part in the exchange of gradients between workers, with losses of 0.
        images = counted if len(counted) > 0 else torch.zeros_like(batch.image_index[:1])
        targets = [
            {"boxes": batch.boxes[i][batch.valid[i]], "labels": batch.labels[i][batch.valid[i]]}
            for i in images.tolist()
        ]
        outputs, anchors, _ = self._run(batch, images)
        with torch.autocast(batch.images.device.type, enabled=False):
            means = self.network.compute_loss(targets, outputs, anchors)
        weight = float(len(counted))
        weighted = {"cls": means["classification"] * weight, "box": means["bbox_regression"] * weight}
        return LossSums(weighted, batch.image_weight.sum())

    def detect(self, batch: Batch, rows: Sequence[ScoringRow]) -> list[list[Detections]]:
        for row in rows:
            _check_row(row)
        outputs, anchors, levels = self._run(batch, torch.arange(len(batch.images), device=batch.images.device))
        sizes = [(int(height), int(width)) for height, width in batch.sizes.tolist()]
        per_level = {name: list(output.split(levels, dim=1)) for name, output in outputs.items()}
        anchors_per_level = [list(of_image.split(levels)) for of_image in anchors]
        with torch.autocast(batch.images.device.type, enabled=False):
            return [self._postprocess(per_level, anchors_per_level, sizes, row.scoring) for row in rows]

    def load_initial_weights(self, file: Path | None) -> None:
        if self.config.weights == "none":
            return
        if file is None:
            raise CheckpointError("no file of ImageNet weights was given", field="model.weights")
        load_imagenet_weights(self.network.backbone.body, "resnet50", file)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile backbone, feature pyramid and heads in place, as `nn.Module.compile`."""
        self.network.backbone.compile(*args, **kwargs)
        self.network.head.compile(*args, **kwargs)

    def _run(self, batch: Batch, images: Tensor) -> tuple[dict[str, Tensor], list[Tensor], list[int]]:
        """Run the network on the chosen images of a batch.

        Return its outputs in float32, 'cls_logits' (B, A, C) and 'bbox_regression' (B, A, 4), the anchors (A, 4) of
        each image, and the number of anchors of each level.
        """
        memory_format = memory_format_of(self.network.backbone)
        pixels = self._normalise(batch.images[images], batch.sizes[images]).contiguous(memory_format=memory_format)
        features = list(self.network.backbone(pixels).values())
        outputs = {name: output.float() for name, output in self.network.head(features).items()}
        # Anchors have the data type of the features; a level's cells have equally many.
        frame = ImageList(pixels, [(pixels.shape[2], pixels.shape[3])] * len(pixels))
        anchors = self.network.anchor_generator(frame, [level.float() for level in features])
        cells = [level.shape[2] * level.shape[3] for level in features]
        per_cell = outputs["cls_logits"].shape[1] // sum(cells)
        return outputs, anchors, [number * per_cell for number in cells]

    def _normalise(self, images: Tensor, sizes: Tensor) -> Tensor:
        """(B, 3, H, W) float32 from uint8 as torchvision normalises, exactly 0 in the padding."""
        rows = torch.arange(images.shape[2], device=images.device)
        columns = torch.arange(images.shape[3], device=images.device)
        padding = (rows >= sizes[:, 0, None])[:, None, :, None] | (columns >= sizes[:, 1, None])[:, None, None, :]
        normalise: Callable[[Tensor], Tensor] = self.network.transform.normalize
        return normalise(images.float() / 255).masked_fill(padding, 0.0)

    def _postprocess(
        self,
        outputs: dict[str, list[Tensor]],
        anchors: list[list[Tensor]],
        sizes: list[tuple[int, int]],
        scoring: ScoringConfig,
    ) -> list[Detections]:
        """torchvision's post-processing, whose top-k is of pairs, not of anchors; one entry an image."""
        network = self.network
        network.score_thresh, network.nms_thresh = scoring.score_threshold, scoring.nms_iou
        network.topk_candidates, network.detections_per_img = scoring.top_k, scoring.max_detections
        return [
            Detections(
                boxes=found["boxes"],
                scores=found["scores"],
                labels=found["labels"],
                class_scores=found["scores"],
                ious=torch.full_like(found["scores"], torch.nan),
                anchor_index=torch.full_like(found["labels"], -1),
            )
            for found in network.postprocess_detections(outputs, anchors, sizes)
        ]


def build(config: TorchvisionRetinaNetConfig, loss: LossConfig, num_classes: int) -> Detector:
    """torchvision's RetinaNet, for `build_detector`; its losses are its own."""
    return TorchvisionRetinaNet(config, num_classes)


def _check_row(row: ScoringRow) -> None:
    """Raise ConfigError for an oracle row; without an IoU head every confidence is 'class'."""
    if row.oracle:
        raise ConfigError("torchvision's RetinaNet has no oracle row", field="scoring")
