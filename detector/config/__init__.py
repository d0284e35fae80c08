"""Configuration of detectors, losses, optimisation, data and scoring; the defaults are the paper's values.

Frozen dataclasses that bring their values to a canonical form and check them on construction (ConfigError). Each field
says by its metadata (`fields.identity`) to which identity it belongs: what names weights, images and numbers. Imports
no torch, so that command lines can show their help at once. Sources: the paper's section 4.1 and MMDetection's defaults
of 2019.
"""

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from detector.config.fields import canonicalise, identity
from detector.config.names import BackboneName
from detector.errors import ConfigError

NUMERICS_VERSION = 1
"""Part of the training identity: raised when a change of the code changes a golden loss."""

IOU_HEAD = "model.iou_head"
"""Field whose absence makes the baseline: what only concerns the head does not count there."""


def _require(holds: bool, field_name: str, value: object, expected: str) -> None:
    if not holds:
        raise ConfigError(f"expected {expected}", field=field_name, value=value)


def _require_fraction(field_name: str, value: float) -> None:
    _require(math.isfinite(value) and 0.0 <= value <= 1.0, field_name, value, "a number from 0 to 1")


def _require_positive(field_name: str, value: float) -> None:
    _require(math.isfinite(value) and value > 0, field_name, value, "a number above 0")


def _require_not_negative(field_name: str, value: float) -> None:
    _require(math.isfinite(value) and value >= 0, field_name, value, "a number of at least 0")


@dataclass(frozen=True)
class BackboneConfig:
    """Backbone, whose C3, C4 and C5 feed the FPN: one of torchvision's ResNets."""

    name: BackboneName = "resnet50"
    weights: Literal["imagenet", "none"] = "imagenet"
    """'imagenet': torchvision's ImageNet V1 weights or a local file of them; 'none': from scratch."""
    norm: Literal["auto", "frozen_statistics", "group", "batch"] = "auto"
    """'auto': BatchNorm with frozen running statistics and trainable affine for ImageNet weights, GroupNorm from
    scratch. 'batch' (trainable statistics) makes results depend on the number of workers, and says so."""
    frozen_stages: int = 1
    """How many residual stages are frozen besides the stem: 1 is the paper's (stem and layer1), -1 freezes nothing.
    From scratch nothing is frozen, whatever this says."""

    def __post_init__(self) -> None:
        canonicalise(self, "backbone")
        _require(-1 <= self.frozen_stages <= 4, "backbone.frozen_stages", self.frozen_stages, "from -1 to 4")

    @property
    def resolved_norm(self) -> Literal["frozen_statistics", "group", "batch"]:
        """The normalisation that 'auto' stands for, given the weights."""
        if self.norm != "auto":
            return self.norm
        return "frozen_statistics" if self.weights == "imagenet" else "group"

    @property
    def resolved_frozen_stages(self) -> int:
        """Frozen residual stages, with the stem from 0 on; -1 where nothing is frozen."""
        return self.frozen_stages if self.weights == "imagenet" else -1


@dataclass(frozen=True)
class AnchorConfig:
    """Nine anchors a location on P3 to P7 (strides 8 to 128)."""

    base_size: float = 4.0
    """Side of the unscaled square anchor, in strides."""
    scales: tuple[float, ...] = (1.0, 2.0 ** (1.0 / 3.0), 2.0 ** (2.0 / 3.0))
    aspect_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Height over width."""
    centre_offset: float = 0.5
    """Anchor centres lie at ((x + offset) stride, (y + offset) stride): 0.5 in the paper's code, 0 in torchvision,
    Detectron2 and MMDetection 2."""

    def __post_init__(self) -> None:
        canonicalise(self, "anchors")
        _require_positive("anchors.base_size", self.base_size)
        for name, values in (("scales", self.scales), ("aspect_ratios", self.aspect_ratios)):
            _require(len(values) > 0, f"anchors.{name}", values, "a non-empty tuple")
            for value in values:
                _require_positive(f"anchors.{name}", value)
        _require_fraction("anchors.centre_offset", self.centre_offset)

    @property
    def per_location(self) -> int:
        """Anchors at one location of one level."""
        return len(self.scales) * len(self.aspect_ratios)


@dataclass(frozen=True)
class RetinaNetConfig:
    """IoU-aware RetinaNet; `iou_head=False` is the baseline, and nothing else changes with it."""

    kind: ClassVar[str] = "retinanet"
    builder: ClassVar[str] = "detector.models.retinanet:build"

    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    anchors: AnchorConfig = field(default_factory=AnchorConfig)
    fpn_channels: int = 256
    tower_depth: int = 4
    """3x3 convolutions before the last one, in the classification and in the regression tower each."""
    tower_norm: Literal["none", "group"] = "none"
    """'group' adds GroupNorm in the FPN and the towers: helps training from scratch; the paper has none."""
    iou_head: bool = True
    prior_probability: float = 0.01
    """Class score of every anchor at initialisation (bias -log(99))."""

    def __post_init__(self) -> None:
        canonicalise(self, "model")
        _require(self.fpn_channels >= 1, "model.fpn_channels", self.fpn_channels, "at least 1")
        _require(
            self.tower_norm == "none" or self.fpn_channels % 8 == 0,
            "model.fpn_channels", self.fpn_channels, "a multiple of 8 with tower_norm 'group'",
        )  # fmt: skip
        _require(self.tower_depth >= 0, "model.tower_depth", self.tower_depth, "at least 0")
        _require(0 < self.prior_probability < 1, "model.prior_probability", self.prior_probability, "between 0 and 1")

    @property
    def pretrained(self) -> BackboneConfig | None:
        """Backbone whose ImageNet weights training starts from; None: random weights."""
        return self.backbone if self.backbone.weights == "imagenet" else None

    @property
    def trains_batch_statistics(self) -> bool:
        """True if BatchNorm takes its statistics from the images of one device, so that results depend on devices."""
        return self.backbone.resolved_norm == "batch"


@dataclass(frozen=True)
class TorchvisionRetinaNetConfig:
    """torchvision's `retinanet_resnet50_fpn`, with its own anchors, losses and post-processing; no IoU head."""

    kind: ClassVar[str] = "torchvision_retinanet"
    builder: ClassVar[str] = "detector.models.torchvision_retinanet:build"

    weights: Literal["imagenet", "none"] = "imagenet"
    """Initial weights of the ResNet-50 backbone; 'none': from scratch."""
    trainable_layers: int = 3
    """Trainable backbone layers, counted from the top (0 to 5); all of them from scratch."""

    def __post_init__(self) -> None:
        canonicalise(self, "model")
        _require(0 <= self.trainable_layers <= 5, "model.trainable_layers", self.trainable_layers, "from 0 to 5")

    @property
    def iou_head(self) -> bool:
        """False: no box has a predicted IoU."""
        return False

    @property
    def pretrained(self) -> BackboneConfig | None:
        """Backbone whose ImageNet weights training starts from; None: random weights."""
        return BackboneConfig(name="resnet50") if self.weights == "imagenet" else None

    @property
    def trains_batch_statistics(self) -> bool:
        """True if BatchNorm takes its statistics from the images of one device: from scratch."""
        return self.weights == "none"


DetectorConfig = RetinaNetConfig | TorchvisionRetinaNetConfig
"""Every detector: `kind` names it in the plain form, `builder` is its function (config, LossConfig, number of classes).

A configuration says whether it has an IoU head, which backbone starts from ImageNet weights, and whether it trains
batch statistics.
"""


@dataclass(frozen=True)
class LossConfig:
    """Anchor assignment and losses, Eq. 1 to 4 of the paper; for the IoU-aware RetinaNet."""

    positive_iou: float = 0.5
    negative_iou: float = 0.4
    low_quality_matches: bool = True
    """Each ground truth's best anchors are positive even below `positive_iou`."""
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0
    smooth_l1_beta: float = 0.11
    box_weight: float = 1.0
    iou_loss: Literal["bce", "l2", "l1"] = field(default="bce", metadata=identity("training", only_with=IOU_HEAD))
    iou_weight: float = field(default=1.0, metadata=identity("training", only_with=IOU_HEAD))
    iou_target_gradient: bool = field(default=False, metadata=identity("training", only_with=IOU_HEAD))
    """Let the IoU loss back-propagate into its own target, the regressed box (off: the paper's tables)."""
    normaliser: Literal["global", "per_device"] = "global"
    """N = sum over images of max(positives, 1), over the whole global batch (default: the result does not depend on
    the number of workers) or over the images of one device (the paper's code)."""

    def __post_init__(self) -> None:
        canonicalise(self, "loss")
        _require_fraction("loss.positive_iou", self.positive_iou)
        _require_fraction("loss.negative_iou", self.negative_iou)
        _require(self.negative_iou <= self.positive_iou, "loss.negative_iou", self.negative_iou, "<= positive_iou")
        _require_fraction("loss.focal_alpha", self.focal_alpha)
        _require_not_negative("loss.focal_gamma", self.focal_gamma)
        _require_positive("loss.smooth_l1_beta", self.smooth_l1_beta)
        _require_not_negative("loss.box_weight", self.box_weight)
        _require_not_negative("loss.iou_weight", self.iou_weight)


@dataclass(frozen=True)
class OptimConfig:
    """Optimiser, schedule and global batch; a device's share of the batch follows from the number of workers."""

    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 0.01
    """At `reference_batch_size` images a step; scaled linearly to `batch_size`."""
    reference_batch_size: int = 16
    batch_size: int = 16
    """Images of one optimiser step over all workers and accumulation steps."""
    momentum: float = 0.9
    """SGD's momentum; AdamW's beta1."""
    weight_decay: float = 1e-4
    clip_norm: float = 35.0
    """Largest gradient norm; 0 switches clipping off."""
    epochs: int = 12
    milestones: tuple[int, ...] = (8, 11)
    """Epochs after which the learning rate is multiplied by `decay`."""
    decay: float = 0.1
    warmup_steps: int = 500
    warmup_ratio: float = 1.0 / 3.0
    """The first step's share of the learning rate; it rises linearly from there."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """'auto': bfloat16 autocast on GPUs that have it, float32 elsewhere."""

    def __post_init__(self) -> None:
        canonicalise(self, "optim")
        _require_positive("optim.learning_rate", self.learning_rate)
        for name in ("reference_batch_size", "batch_size", "epochs"):
            _require(getattr(self, name) >= 1, f"optim.{name}", getattr(self, name), "at least 1")
        for name in ("weight_decay", "clip_norm", "warmup_steps"):
            _require_not_negative(f"optim.{name}", getattr(self, name))
        for name in ("momentum", "decay", "warmup_ratio"):
            _require_fraction(f"optim.{name}", getattr(self, name))
        _require(
            list(self.milestones) == sorted(set(self.milestones)) and all(m >= 1 for m in self.milestones),
            "optim.milestones", self.milestones, "increasing epoch numbers from 1 on",
        )  # fmt: skip

    @property
    def scaled_learning_rate(self) -> float:
        """The learning rate after warm-up for this global batch (linear scaling rule)."""
        return self.learning_rate * self.batch_size / self.reference_batch_size


@dataclass(frozen=True)
class DataConfig:
    """Selection and presentation of the images; `SourceConfig` says where they lie."""

    train_split: str = "train"
    """Split name(s): 'train', 'train2017', VOC image sets such as '2007:trainval+2012:trainval'."""
    val_split: str = field(default="val", metadata=identity("validation"))
    classes: tuple[str, ...] | None = field(default=None, metadata=identity("training", "validation"))
    """Class names in label order; None: the data set's own categories that have boxes, by category id."""
    short_side_px: int = 800
    long_side_px: int = 1333
    size_divisor: int = 32
    flip_probability: float = 0.5
    group_by_aspect_ratio: bool = True
    min_image_side_px: int = 32
    """Training images with a shorter side are dropped."""
    train_limit: int | None = None
    """Use the first N training images only."""
    val_limit: int | None = field(default=None, metadata=identity("validation"))
    unusable_images: Literal["error", "skip"] = field(default="error", metadata=identity())
    """Images that cannot be read or are of another size than annotated: 'error' refuses to start,
    'skip' leaves them out of both splits, lists them in the manifest and counts them beside AP (val/skipped_images).
    Not part of the identity: the data set's fingerprint lacks skipped images."""
    max_skipped_fraction: float = field(default=0.01, metadata=identity())
    """Largest skipped share of a split's images; where more cannot be used, 'skip' refuses as well. One image may be
    skipped unless this is 0."""

    def __post_init__(self) -> None:
        canonicalise(self, "data")
        _require(self.short_side_px >= 1, "data.short_side_px", self.short_side_px, "at least 1")
        _require(self.long_side_px >= self.short_side_px, "data.long_side_px", self.long_side_px, ">= short_side_px")
        _require(self.size_divisor >= 1, "data.size_divisor", self.size_divisor, "at least 1")
        _require_fraction("data.flip_probability", self.flip_probability)
        _require_fraction("data.max_skipped_fraction", self.max_skipped_fraction)
        for name in ("train_limit", "val_limit"):
            limit = getattr(self, name)
            _require(limit is None or limit >= 1, f"data.{name}", limit, "at least 1, or left out")
        if self.classes is not None:
            unique = len(set(self.classes)) == len(self.classes) and len(self.classes) > 0
            _require(unique, "data.classes", self.classes, "one or more different names")


@dataclass(frozen=True)
class ScoringConfig:
    """From the network's outputs to at most 100 boxes an image (MMDetection's order of top-k and threshold)."""

    confidence: Literal["alpha", "none", "class"] = field(
        default="alpha", metadata=identity("scoring", only_with=IOU_HEAD)
    )
    """'alpha': S = p^alpha q^(1-alpha), Eq. 5; 'none': p q; 'class': p. Without an IoU head always 'class'."""
    alpha: float = field(default=0.5, metadata=identity("scoring", only_with="scoring.confidence=alpha"))
    top_k: int = 1000
    """Anchors kept a level, by their best combined score over the classes."""
    score_threshold: float = 0.05
    nms_iou: float = 0.5
    max_detections: int = 100

    def __post_init__(self) -> None:
        canonicalise(self, "scoring")
        _require_fraction("scoring.alpha", self.alpha)
        _require_fraction("scoring.score_threshold", self.score_threshold)
        _require_fraction("scoring.nms_iou", self.nms_iou)
        _require(self.top_k >= 1, "scoring.top_k", self.top_k, "at least 1")
        _require(self.max_detections >= 1, "scoring.max_detections", self.max_detections, "at least 1")
