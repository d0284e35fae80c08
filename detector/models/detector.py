"""The port of a detector: what training, inference, re-scoring and benchmarks know of a network, and nothing else.

B images, G ground-truth boxes, D detections of an image, C classes. Boxes are x1, y1, x2, y2 float32 in pixels of the
resized frame.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

from detector.config import ScoringConfig
from detector.data.batching import Batch


@dataclass(frozen=True)
class ScoringRow:
    """One way to turn a network's outputs into detections; a row of the paper's Table 3, for example."""

    scoring: ScoringConfig
    oracle: bool = False
    """The true IoU takes the predicted one's place, in the choice of anchors and in the confidence."""


class LossSums(NamedTuple):
    """Losses of a batch as sums over its images, weighted as the training loss weights them.

    The training loss is sum(weighted) / N, where N is `normaliser`, summed over the global batch or taken from one
    device. An image of weight 0 (`Batch.image_weight`) counts for nothing, the normaliser included.
    """

    weighted: Mapping[str, Tensor]
    """Scalar float32 tensors by name, at least one, with gradient; a name gives 'train/loss_<name>'. The same names
    in the same order for every batch."""
    normaliser: Tensor
    """Scalar float32 tensor, at least 0."""


@dataclass(frozen=True)
class Detections:
    """Detections of one image by score descending; D may be 0. Tensors are on the network's device."""

    boxes: Tensor
    """(D, 4) float32 x1, y1, x2, y2, resized frame, clipped to the image."""
    scores: Tensor
    """(D,) float32 combined score, above the threshold."""
    labels: Tensor
    """(D,) int64, 0 to C - 1."""
    class_scores: Tensor
    """(D,) float32, the probability p of that class."""
    ious: Tensor
    """(D,) float32, the IoU that the score was made with, predicted or given; NaN without one."""
    anchor_index: Tensor
    """(D,) int64 flat anchor index; -1 where the detector does not give it."""


class Detector(nn.Module, ABC):
    """A network with its losses and its post-processing.

    Weights and batches are on one device. The detector normalises the pixels of `Batch.images` itself, in the memory
    format of its weights. Automatic mixed precision is the caller's; losses, boxes and scores are float32 all the same.
    `nn.Module.compile` compiles the network; the losses and the post-processing around it stay as they are.
    """

    @abstractmethod
    def losses(self, batch: Batch) -> LossSums:
        """Run the network on a batch (B images, G boxes each, G may be 0) and sum its losses.

        In training mode. Raise nothing for values that are not finite.
        """

    @abstractmethod
    def detect(self, batch: Batch, rows: Sequence[ScoringRow]) -> list[list[Detections]]:
        """Run the network once and post-process its outputs under every row: detections by [row][image].

        In evaluation mode and inference mode. Each row's detections are those that it gets alone, bit for bit. An
        oracle row takes `boxes` and `valid` of the batch for the ground truth. Raise ConfigError for a row that the
        detector does not support.
        """

    @abstractmethod
    def load_initial_weights(self, file: Path | None) -> None:
        """Load the ImageNet weights that the configuration asks for, in place; do nothing where it asks for none.

        Raise CheckpointError, with the weights unchanged, for a file that is missing (None), unreadable or made for
        another network.
        """
