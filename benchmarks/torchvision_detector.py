"""The other side: torchvision's RetinaNet as its users would write it, by its reference training script.

It is `retinanet_resnet50_fpn` as it is built for pretrained ImageNet weights (frozen BatchNorm, stem and first stage
frozen, P6 and P7 of 256 channels from P5), but with random ones, as nothing is downloaded here.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import resnet50
from torchvision.models.detection import RetinaNet as TorchvisionRetinaNet
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import misc
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from benchmarks.our_detector import calm
from detector.data.batching import Batch
from detector.models.heads import HeadOutputs


def build(classes: int, size: tuple[int, int], *, channels_last: bool = True) -> Any:
    """The model on the CPU, in training mode; `size` is the height and width that its own resizing then keeps."""
    torch.manual_seed(0)
    trunk = resnet50(weights=None, norm_layer=misc.FrozenBatchNorm2d)
    calm(trunk)
    backbone = _resnet_fpn_extractor(trunk, 3, returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(256, 256))
    model = TorchvisionRetinaNet(
        backbone, num_classes=classes, min_size=min(size), max_size=max(size), detections_per_img=100
    )
    return model.to(memory_format=torch.channels_last) if channels_last else model


def optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """SGD as the reference script makes it, at our learning rate."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=1e-4)


def float_images(batch: Batch) -> list[Tensor]:
    """The batch's images as `ToTensor` gives them: (3, h, w) float32, 0 to 1, in page-locked memory with a GPU."""
    images = [
        batch.images[i, :, :height, :width].float() / 255 for i, (height, width) in enumerate(batch.sizes.tolist())
    ]
    return [image.pin_memory() for image in images] if torch.cuda.is_available() else images


def targets(batch: Batch) -> list[dict[str, Tensor]]:
    """The batch's boxes and labels, one dictionary an image."""
    return [
        {"boxes": boxes[valid], "labels": labels[valid]}
        for boxes, labels, valid in zip(batch.boxes, batch.labels, batch.valid, strict=True)
    ]


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    """Automatic mixed precision, or none."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def train_step(
    model: Any,
    updates: torch.optim.Optimizer,
    images: Sequence[Tensor],
    truth: Sequence[dict[str, Tensor]],
    device: torch.device,
    dtype: torch.dtype | None,
) -> None:
    """One step of the reference script, which looks at the loss before it goes on."""
    on_device = [image.to(device, non_blocking=True) for image in images]
    truth = [{name: value.to(device) for name, value in of_image.items()} for of_image in truth]
    with autocast(device, dtype):
        losses = sum(model(on_device, truth).values())
    if not torch.isfinite(losses).item():
        raise ArithmeticError("torchvision's loss is not finite")
    updates.zero_grad()
    losses.backward()
    updates.step()


def losses(outputs: HeadOutputs, anchors: Sequence[Tensor], truth: list[dict[str, Tensor]]) -> Tensor:
    """Matching and losses of torchvision's detector, image by image: its classification and box loss, summed."""
    parts = SimpleNamespace(proposal_matcher=Matcher(0.5, 0.4, allow_low_quality_matches=True), head=_head())
    together = {
        "cls_logits": torch.cat(outputs.cls_logits, dim=1),
        "bbox_regression": torch.cat(outputs.box_deltas, dim=1),
    }
    found = TorchvisionRetinaNet.compute_loss(parts, truth, together, [torch.cat(tuple(anchors))] * len(truth))
    return sum(found.values(), start=torch.zeros((), device=together["cls_logits"].device))


def post_process(outputs: HeadOutputs, anchors: Sequence[Tensor], sizes: Sequence[tuple[int, int]]) -> Any:
    """torchvision's post-processing of class logits and boxes, to 100 detections; it knows no predicted IoU."""
    parts = SimpleNamespace(
        score_thresh=0.05,
        nms_thresh=0.5,
        detections_per_img=100,
        topk_candidates=1000,
        box_coder=BoxCoder(weights=(1.0, 1.0, 1.0, 1.0)),
    )
    return TorchvisionRetinaNet.postprocess_detections(
        parts,
        {"cls_logits": list(outputs.cls_logits), "bbox_regression": list(outputs.box_deltas)},
        [list(anchors) for _ in sizes],
        list(sizes),
    )


@lru_cache
def _head() -> Any:
    """Only its methods are called: the losses do not look at its weights."""
    return RetinaNetHead(in_channels=1, num_anchors=9, num_classes=1)
