"""The backbone: torchvision's ResNets up to C5, their normalisation and freezing, and their ImageNet weights.

B images. Features C3, C4, C5 are (B, channels, H_l, W_l) with strides 8, 16, 32. The stride of a bottleneck lies in
its 3x3 convolution, as in torchvision and in the paper's code.
"""

import math
import pickle
import warnings
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlparse
from urllib.request import Request, urlopen

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import get_model_weights
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from detector.config import BackboneConfig, BackboneName
from detector.errors import CheckpointError


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


class ResNetBackbone(nn.Module):
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


def build_backbone(config: BackboneConfig) -> ResNetBackbone:
    """The backbone with random weights (torchvision's initialisation) and frozen stages as `config` says.

    Its `channels` are those of C3, C4, C5. Warns where the normalisation depends on the number of workers, or where
    nothing is normalised.
    """
    return ResNetBackbone(config)


def resolve_imagenet_weights(name: BackboneName, weights_file: Path | None) -> Path:
    """The file with ImageNet weights: the given one, else torchvision's V1 weights in torch.hub's cache, which are
    downloaded when they are missing. Raises CheckpointError that says what can be done instead."""
    if weights_file is not None:
        if not weights_file.is_file():
            raise CheckpointError("no such file", file=weights_file, field="weights file", remedy="Check the path")
        return weights_file
    if name == "resnext101_32x4d":
        raise CheckpointError(
            "torchvision publishes no ImageNet weights for it",
            field="backbone.name",
            value=name,
            remedy="Give a file with --weights-file, choose resnext101_32x8d, or set backbone.weights to 'none'",
        )
    url = get_model_weights(name).IMAGENET1K_V1.url
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    if not file.is_file():
        _download(url, file)
    return file


def _download(url: str, file: Path) -> None:
    digest = file.stem.rpartition("-")[2]
    try:
        # torch.hub waits for a silent network for minutes; this asks first.
        with urlopen(Request(url, method="HEAD"), timeout=15):
            pass
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(file), hash_prefix=digest, progress=False)  # moves it in when complete
    except (OSError, RuntimeError, HTTPException) as error:  # no network, no room; not the expected SHA-256; no HTTP
        raise CheckpointError(
            f"ImageNet weights cannot be downloaded from {url}: {error}",
            file=file,
            remedy="Put the file there yourself, give one with --weights-file, or train from scratch with "
            "backbone.weights 'none'",
        ) from error


def load_imagenet_weights(backbone: nn.Module, name: BackboneName, weights_file: Path | None) -> None:
    """Load ImageNet weights into a backbone in place; the file's classifier (`fc.*`) is ignored.

    Reads .safetensors, or anything `torch.load` reads without running code. Raises CheckpointError, with the backbone
    unchanged, where the file is missing, unreadable or of another network: keys are named.
    """
    file = resolve_imagenet_weights(name, weights_file)
    found = {key: value for key, value in read_tensors(file).items() if not key.startswith("fc.")}
    wanted = backbone.state_dict()
    # A count that files from before torch 0.4.1 lack and that nothing here uses.
    for state in (found, wanted):
        for key in [key for key in state if key.endswith("num_batches_tracked")]:
            del state[key]
    problems = [
        _listing("missing", [key for key in wanted if key not in found]),
        _listing("unexpected", [key for key in found if key not in wanted]),
        _listing(
            "of another shape",
            [
                f"{key} {tuple(found[key].shape)} for {tuple(wanted[key].shape)}"
                for key in wanted
                if key in found and found[key].shape != wanted[key].shape
            ],
        ),
    ]
    if any(problems):
        raise CheckpointError(
            f"not the weights of {name}: {'; '.join(problem for problem in problems if problem)}",
            file=file,
            remedy="Give the file of this very backbone, normalised as backbone.norm says",
        )
    backbone.load_state_dict(found, strict=False)


def _listing(what: str, keys: list[str], limit: int = 5) -> str:
    more = f" and {len(keys) - limit} more" if len(keys) > limit else ""
    return f"{len(keys)} {what} ({', '.join(keys[:limit])}{more})" if keys else ""


def published_digest(name: BackboneName) -> str | None:
    """First hexadecimal digits of the SHA-256 of torchvision's file of ImageNet V1 weights; None where it has none."""
    if name == "resnext101_32x4d":
        return None
    return Path(urlparse(get_model_weights(name).IMAGENET1K_V1.url).path).stem.rpartition("-")[2]


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Tensors of a .safetensors file, or of one that `torch.load` reads without running code; CheckpointError else."""
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: object = load_file(file)
        else:
            content = torch.load(file, map_location="cpu", weights_only=True)
    # Damaged or hostile files surface as any of these, depending on where the reader stumbles.
    except Exception as error:
        # torch's own text advises to read the file with the right to run code.
        refused = isinstance(error, pickle.UnpicklingError)
        reason = "expected tensors and nothing else" if refused else f"{type(error).__name__}: {error}".splitlines()[0]
        raise CheckpointError(
            f"cannot be read as weights ({reason})",
            file=file,
            remedy="Delete it to have it downloaded again, or give another with --weights-file",
        ) from error
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError("holds no dictionary of tensors", file=file, remedy="Save a state_dict")
    return content
