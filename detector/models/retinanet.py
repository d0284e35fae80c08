"""The detector: trunk, feature pyramid and heads put together.

B images. Images are float RGB, already normalised, zero padded at the right and bottom.
"""

from torch import Tensor, nn

from detector.config import RetinaNetConfig
from detector.errors import ConfigError
from detector.models.anchors import AnchorGenerator
from detector.models.backbones import build_backbone
from detector.models.fpn import FeaturePyramid
from detector.models.heads import HeadOutputs, RetinaNetHeads

__all__ = ["HeadOutputs", "RetinaNet"]


class RetinaNet(nn.Module):
    """RetinaNet (arXiv 1708.02002) with or without the paper's IoU head.

    One seed gives equal initial weights with and without the IoU head, but for that head. ImageNet weights are not
    loaded here: see `backbones.load_imagenet_weights` for `model.backbone`. Frozen parameters do not require gradients.
    """

    def __init__(self, config: RetinaNetConfig, num_classes: int) -> None:
        super().__init__()
        if num_classes < 1:
            raise ConfigError("must be at least 1", field="num_classes", value=num_classes)
        self.config = config
        self.num_classes = num_classes
        self.anchors = AnchorGenerator(config.anchors)
        self.backbone = build_backbone(config.backbone)
        self.fpn = FeaturePyramid(self.backbone.channels, config.fpn_channels, config.tower_norm)
        self.heads = RetinaNetHeads(config, num_classes)

    def forward(self, images: Tensor) -> HeadOutputs:
        """Images (B, 3, H, W), H and W multiples of 32, to the outputs for every anchor, in the order of `anchors`."""
        outputs: HeadOutputs = self.heads(self.fpn(self.backbone(images)))
        return outputs
