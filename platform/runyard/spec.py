"""One experiment as a frozen tree of dataclasses, and the two hashes that say which experiments are the same.

The *training hash* covers model, losses, optimisation, training data selection and seed: same hash, same trained
weights. The *scoring hash* covers validation data selection, confidence, top-k and protocol: same two hashes, same
numbers. Workers, devices, paths and tracking are in neither. Imports no torch.
"""

import dataclasses
import hashlib
import json
import sys
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from detector.config import DataConfig, LossConfig, ModelConfig, OptimConfig, ScoringConfig
from detector.errors import ConfigError

IDENTITY = ("model", "loss", "optim", "data", "scoring", "protocol", "seed")
"""The parts of a spec that change results."""


@dataclass(frozen=True)
class SourceConfig:
    """Where the data lie."""

    data: Path | None = None
    """Folder of the data set."""
    format: Literal["auto", "coco", "voc"] = "auto"
    train_annotations: Path | None = None
    """COCO JSON of the training split, where the layout cannot tell."""
    train_images: Path | None = None
    val_annotations: Path | None = None
    val_images: Path | None = None
    weights_file: Path | None = None
    """Local file of ImageNet weights (.pth or .safetensors) for machines without a network."""


@dataclass(frozen=True)
class RuntimeConfig:
    """How and where the experiment runs; changes no result beyond floating-point rounding."""

    storage: Path | None = None
    """Folder of all runs; on a cluster it must be shared by all nodes. None: ./runs (inside a job: a printed one)."""
    name: str | None = None
    """Name of the run's folder. None: recipe, data set and training hash."""
    workers: int = 1
    """Training processes."""
    min_workers: int | None = None
    """Ray only: go on with as few while nodes are missing, and with more again when they come; same images a step, same
    learning rate. None: always `workers`."""
    gpus_per_worker: int | None = None
    """None: one where the cluster (or this machine) has GPUs, else none."""
    cpus_per_worker: int = 1
    accumulation: int = 1
    """Micro-batches a step and worker; the global batch stays as the spec says."""
    loader_workers: int = 0
    """Image loading processes of each worker; 0 loads in the training process."""
    check_images: bool = True
    """Decode every image once before the start. What was found sound is remembered in the storage folder."""
    channels_last: bool = True
    compile: bool = False
    """torch.compile the network: pays on long GPU runs."""
    log_every_steps: int = 10
    checkpoint_every_steps: int = 0
    """Besides the one at every epoch's end; 0: none."""
    evaluate_every_epochs: int = 0
    """Besides the one after the last epoch; 0: none."""
    evaluation_batch_size: int = 8
    max_failures: int = 3
    """Worker failures survived before the run is given up."""
    collective_timeout_s: float = 600.0
    """A rank that is silent in a collective for longer ends the attempt."""
    tracking_uri: str | None = None
    """MLflow store. None: $MLFLOW_TRACKING_URI, else a SQLite file in the storage folder."""
    experiment: str = "runyard"
    """MLflow experiment."""

    def __post_init__(self) -> None:
        for name, least in (
            ("workers", 1),
            ("cpus_per_worker", 1),
            ("accumulation", 1),
            ("loader_workers", 0),
            ("log_every_steps", 1),
            ("checkpoint_every_steps", 0),
            ("evaluate_every_epochs", 0),
            ("evaluation_batch_size", 1),
            ("max_failures", 0),
        ):
            value = getattr(self, name)
            if value < least:
                raise ConfigError(f"must be at least {least}", field=f"runtime.{name}", value=value)
        if self.min_workers is not None and not 1 <= self.min_workers <= self.workers:
            raise ConfigError("must be 1 to runtime.workers", field="runtime.min_workers", value=self.min_workers)
        if self.collective_timeout_s <= 0:
            raise ConfigError("must be above 0", field="runtime.collective_timeout_s", value=self.collective_timeout_s)


@dataclass(frozen=True)
class PaperReference:
    """The row of the paper that an experiment reproduces."""

    table: str = ""
    row: str = ""
    changed: tuple[str, ...] = ()
    """The fields in which the experiment differs from the recipe of that row, and so from the paper."""


@dataclass(frozen=True)
class ExperimentSpec:
    """Everything that defines a run."""

    recipe: str = "experiment"
    paper: PaperReference = field(default_factory=PaperReference)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    data: DataConfig = field(default_factory=DataConfig)
    scoring: ScoringConfig = field(default_factory=ScoringConfig)
    protocol: Literal["coco", "voc"] = "coco"
    """What is reported: COCO metrics, or these and VOC's 11-point and area AP."""
    seed: int = 0
    source: SourceConfig = field(default_factory=SourceConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    @property
    def training_hash(self) -> str:
        """16 hexadecimal digits that name the trained weights."""
        tree = to_dict(self)
        content = {key: tree[key] for key in ("model", "loss", "optim", "data", "seed")}
        for key in ("val_split", "val_limit", "unusable_images", "max_skipped_fraction"):
            del content["data"][key]
        if not self.model.iou_head:  # what only concerns the absent head does not make another baseline
            for key in ("iou_loss", "iou_weight", "iou_target_gradient"):
                del content["loss"][key]
        return digest(content)

    @property
    def validation_hash(self) -> str:
        """16 hexadecimal digits that name the selection of validation images."""
        data = to_dict(self.data)
        return digest({key: data[key] for key in ("val_split", "val_limit", "classes")})

    @property
    def scoring_hash(self) -> str:
        """16 hexadecimal digits that name how a trained model is turned into numbers."""
        tree = to_dict(self)
        scoring = tree["scoring"]
        if not self.model.iou_head:
            scoring["confidence"] = "class"
        if scoring["confidence"] != "alpha":
            del scoring["alpha"]
        val = {key: tree["data"][key] for key in ("val_split", "val_limit", "classes", "short_side_px", "long_side_px")}
        return digest({"scoring": scoring, "protocol": self.protocol, "val": val})


def to_dict(value: Any) -> Any:
    """The plain JSON form of a spec or of any part of it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_dict(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return [to_dict(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def from_dict(tree: object, kind: type = ExperimentSpec, *, where: str = "spec") -> Any:
    """The inverse of `to_dict`.

    Raises ConfigError for an unknown key, a value of another type or one outside its range; absent keys keep their
    defaults.
    """
    if not isinstance(tree, dict):
        raise ConfigError("must be a mapping", field=where, value=tree)
    known = {f.name for f in dataclasses.fields(kind)}
    unknown = sorted(str(key) for key in tree if key not in known)
    if unknown:
        raise ConfigError(
            "unknown key", field=f"{where}.{unknown[0]}", remedy=f"Known keys: {', '.join(sorted(known))}"
        )
    hints = typing.get_type_hints(kind)
    return kind(**{key: _convert(value, hints[key], f"{where}.{key}") for key, value in tree.items()})


def differences(old: ExperimentSpec, new: ExperimentSpec) -> list[str]:
    """The fields of the training identity in which two specs differ, as 'model.iou_head: True -> False'."""
    return [
        f"{name}: {before!r} -> {after!r}"
        for (name, before), (_, after) in zip(flatten(to_dict(old)), flatten(to_dict(new)), strict=True)
        if before != after and name.split(".")[0] in ("model", "loss", "optim", "data", "seed")
    ]


def changed_fields(before: ExperimentSpec, after: ExperimentSpec) -> dict[str, Any]:
    """The fields that change results and differ, by dotted name, with their new plain values."""
    old, new = dict(flatten(to_dict(before))), dict(flatten(to_dict(after)))
    return {name: new[name] for name in new if name.split(".")[0] in IDENTITY and old[name] != new[name]}


def against_recipe(spec: ExperimentSpec, recipe: ExperimentSpec) -> ExperimentSpec:
    """The spec, saying in which fields besides the seed it differs from the recipe of the paper's row."""
    changed = tuple(name for name in changed_fields(recipe, spec) if name != "seed")
    return dataclasses.replace(spec, paper=dataclasses.replace(spec.paper, changed=changed))


def flatten(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """The leaves of a nested dictionary with dotted names, in order."""
    leaves: list[tuple[str, Any]] = []
    for key, value in tree.items():
        if isinstance(value, dict):
            leaves += flatten(value, f"{prefix}{key}.")
        else:
            leaves.append((f"{prefix}{key}", value))
    return leaves


def digest(content: dict[str, Any]) -> str:
    """16 hexadecimal digits that name a plain value."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _convert(value: Any, hint: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return from_dict(value, typing.cast(type, hint), where=where)
    if origin is Literal:
        if value not in arguments:
            raise ConfigError(f"must be one of {', '.join(map(repr, arguments))}", field=where, value=value)
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        (inner,) = [argument for argument in arguments if argument is not type(None)]
        return _convert(value, inner, where)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError("must be a list", field=where, value=value)
        return tuple(_convert(item, arguments[0], f"{where}[{i}]") for i, item in enumerate(value))
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        if abs(value) > sys.float_info.max:  # JSON's integers have no limit
            raise ConfigError("is too large for a number", field=where, value=value)
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise ConfigError(f"must be of type {hint.__name__}", field=where, value=value)
    return value
