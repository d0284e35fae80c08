"""Samples into one padded batch.

B images, G ground-truth boxes of the image with the most, H and W the padded height and width. Images lie at the top
left; boxes are float32 x1, y1, x2, y2 in the resized frame, which padding does not change.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from detector.data.sizes import padded_shape
from detector.data.transforms import Sample


@dataclass(frozen=True, eq=False)
class Batch:
    """Input of one forward pass, and its place in the run."""

    images: Tensor
    """(B, 3, H, W) uint8 RGB, 0 in the padding."""
    sizes: Tensor
    """(B, 2) int64 height, width of each image without padding."""
    boxes: Tensor
    """(B, G, 4) float32, 0 where not valid; G may be 0."""
    labels: Tensor
    """(B, G) int64, 0 where not valid."""
    valid: Tensor
    """(B, G) bool"""
    image_index: Tensor
    """(B,) int64 position in the data set."""
    image_weight: Tensor
    """(B,) float32, 1 for an image, 0 for a filler that must count for nothing."""
    epoch: int = 0
    step: int = 0
    """The global batch within the epoch; in evaluation, the batch's number over all workers."""
    micro: int = 0
    """The micro-batch within the step."""

    def to(self, device: torch.device | str, non_blocking: bool = True) -> "Batch":
        """The same batch on a device; with page-locked memory the copy to a GPU runs in the background."""
        device = torch.device(device)
        # Copying to the host in the background would hand out tensors that are not filled yet.
        in_background = non_blocking and device.type != "cpu"
        return self._map(lambda tensor: tensor.to(device, non_blocking=in_background))

    def pin_memory(self) -> "Batch":
        """The same batch in page-locked memory; `torch.utils.data.DataLoader` calls this."""
        return self._map(Tensor.pin_memory)

    def _map(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        return replace(
            self,
            images=function(self.images),
            sizes=function(self.sizes),
            boxes=function(self.boxes),
            labels=function(self.labels),
            valid=function(self.valid),
            image_index=function(self.image_index),
            image_weight=function(self.image_weight),
        )


def collate(samples: Sequence[Sample], size_divisor: int, fillers: int = 0) -> Batch:
    """Pads samples (one at least) at the bottom and right to a common shape, and their boxes to a common number.

    Args:
        size_divisor: the padded height and width are the smallest multiples of it that hold every sample.
        fillers: so many of the last samples get weight 0 (see `epoch_plan.share`).
    """
    sizes = [(sample.image.shape[1], sample.image.shape[2]) for sample in samples]
    height, width = padded_shape(sizes, size_divisor)
    most = max(len(sample.labels) for sample in samples)
    images = torch.zeros(len(samples), 3, height, width, dtype=torch.uint8)
    boxes = torch.zeros(len(samples), most, 4)
    labels = torch.zeros(len(samples), most, dtype=torch.int64)
    valid = torch.zeros(len(samples), most, dtype=torch.bool)
    for i, sample in enumerate(samples):
        count = len(sample.labels)
        images[i, :, : sizes[i][0], : sizes[i][1]] = sample.image
        boxes[i, :count] = sample.boxes
        labels[i, :count] = sample.labels
        valid[i, :count] = True
    image_weight = torch.ones(len(samples))
    image_weight[len(samples) - fillers :] = 0
    return Batch(
        images=images,
        sizes=torch.tensor(sizes, dtype=torch.int64),
        boxes=boxes,
        labels=labels,
        valid=valid,
        image_index=torch.tensor([sample.image_index for sample in samples], dtype=torch.int64),
        image_weight=image_weight,
    )
