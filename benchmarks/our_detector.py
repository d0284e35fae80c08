"""Our side: model and engine as the training loop makes them, with random weights that stay where they are."""

import torch
from torch import nn

from detector.config import BackboneConfig, OptimConfig, RetinaNetConfig
from detector.engine import TrainingEngine
from detector.models.retinanet import RetinaNet
from detector.optim import build_optimizer


def build(
    classes: int, device: torch.device, *, backbone: BackboneConfig | None = None, iou_head: bool = True
) -> RetinaNet:
    """The paper's detector (ResNet-50 as for ImageNet weights) in training mode, channels-last."""
    torch.manual_seed(0)
    model = RetinaNet(RetinaNetConfig(backbone=backbone or BackboneConfig(), iou_head=iou_head), classes)
    calm(model.backbone)
    return model.train().to(memory_format=torch.channels_last).to(device)


def engine(model: RetinaNet, dtype: torch.dtype | None, *, compiled: bool = False) -> TrainingEngine:
    """A training engine with the paper's optimiser."""
    config = OptimConfig()
    return TrainingEngine(
        model,
        build_optimizer(model, config),
        config,
        autocast_dtype=dtype,
        compile_network=compiled,
    )


def calm(trunk: nn.Module) -> None:
    """Shrinks what each residual block adds: random weights without batch statistics would let features explode."""
    for block in trunk.modules():
        last = getattr(block, "bn3", None)
        if last is not None:
            nn.init.constant_(last.weight, 0.2)
