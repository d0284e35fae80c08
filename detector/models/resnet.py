"""torchvision's ResNets and ResNeXts up to C5, their normalisation and freezing.

B images. Features C3, C4, C5 are (B, channels, H_l, W_l) with strides 8, 16, 32. The stride of a bottleneck lies in
its 3x3 convolution, as in torchvision and in the paper's code.
"""

import math
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from detector.config import BackboneConfig
from detector.config.names import BackboneName
from detector.models.backbones import Backbone


class _Architecture(NamedTuple):
    block: type[BasicBlock] | type[Bottleneck]
    layers: tuple[int, int, int, int]
    groups: int = 1
    width_per_group: int = 64


_ARCHITECTURES: Mapping[BackboneName, _Architecture] = {
    "resnet18": _Architecture(BasicBlock, (2, 2, 2, 2)),
    "resnet34": _Architecture(BasicBlock, (3, 4, 6, 3)),
    "resnet50": _Architecture(Bottleneck, (3, 4, 6, 3)),
    "resnet101": _Architecture(Bottleneck, (3, 4, 23, 3)),
    "resnext101_32x4d": _Architecture(Bottleneck, (3, 4, 23, 3), groups=32, width_per_group=4),
    "resnext101_32x8d": _Architecture(Bottleneck, (3, 4, 23, 3), groups=32, width_per_group=8),
}


class FrozenStatisticsBatchNorm2d(nn.Module):
    """BatchNorm2d that always normalises with its stored statistics; weight and bias may still be trained.

    Its state has BatchNorm2d's names, without `num_batches_tracked`, which is ignored where a file has it.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, features: Tensor) -> Tensor:
        return functional.batch_norm(
            features, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
        )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        state_dict.pop(prefix + "num_batches_tracked", None)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(32, channels), channels)


class ResNetBackbone(Backbone):
    """A torchvision ResNet without its classifier, under torchvision's parameter names."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        norm = config.resolved_norm
        if norm == "batch":
            warnings.warn(
                "backbone.norm 'batch' trains BatchNorm statistics on each worker's own images: results then depend on "
                "the number of workers. 'group' or 'frozen_statistics' do not.",
                stacklevel=2,
            )
        elif norm == "frozen_statistics" and config.weights == "none":
            warnings.warn(
                "backbone.norm 'frozen_statistics' with weights 'none' normalises nothing: the stored statistics stay "
                "at mean 0 and variance 1. Use 'group' to train from scratch.",
                stacklevel=2,
            )
        layers = {"frozen_statistics": FrozenStatisticsBatchNorm2d, "group": _group_norm, "batch": nn.BatchNorm2d}
        architecture = _ARCHITECTURES[config.name]
        net = ResNet(
            architecture.block,
            list(architecture.layers),
            num_classes=1,  # the classifier is not used
            groups=architecture.groups,
            width_per_group=architecture.width_per_group,
            norm_layer=layers[norm],
        )
        self.conv1, self.bn1, self.relu, self.maxpool = net.conv1, net.bn1, net.relu, net.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = net.layer1, net.layer2, net.layer3, net.layer4
        expansion = architecture.block.expansion
        self.channels = (128 * expansion, 256 * expansion, 512 * expansion)
        stages = [nn.ModuleList([self.conv1, self.bn1]), self.layer1, self.layer2, self.layer3, self.layer4]
        # A tuple is not registered: these modules have their names already.
        self._frozen = tuple(stages[: config.resolved_frozen_stages + 1])
        for stage in self._frozen:
            stage.requires_grad_(False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images (B, 3, H, W) to C3, C4, C5."""
        stem = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        c3 = self.layer2(self.layer1(stem))
        c4 = self.layer3(c3)
        return c3, c4, self.layer4(c4)

    def train(self, mode: bool = True) -> "ResNetBackbone":
        """As usual, but frozen stages keep their statistics even where BatchNorm is trained."""
        super().train(mode)
        for stage in self._frozen:
            stage.eval()
        return self


def build(config: BackboneConfig) -> Backbone:
    """A ResNet with torchvision's random initialisation.

    Warn where the normalisation depends on the number of workers, or where nothing is normalised.
    """
    return ResNetBackbone(config)
