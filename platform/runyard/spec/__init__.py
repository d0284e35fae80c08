"""One experiment as a frozen tree of dataclasses. Imports no torch.

Each field says by its metadata whether it belongs to the weights that training gives, to the images that are evaluated
or to the way that outputs become numbers (`detector.config.fields`); `runyard.spec.identity` derives the hashes from
that. Devices, paths and tracking belong to none of them.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from detector.config import (
    DataConfig,
    DetectorConfig,
    LossConfig,
    OptimConfig,
    RetinaNetConfig,
    ScoringConfig,
    fields,
)
from detector.config.fields import canonicalise
from detector.config.names import FormatName
from detector.errors import ConfigError
from runyard.spec.identity import changed_fields, evaluation_hash, training_hash, trial_id, validation_hash

MAX_SEED = 2**63 - 1


def depends_on_devices(spec: "ExperimentSpec") -> bool:
    """True if the trained weights depend on how a step's images are shared out over workers and micro-batches."""
    return spec.model.trains_batch_statistics or spec.loss.normaliser == "per_device"


def starts_from_weights(spec: "ExperimentSpec") -> bool:
    """True if training starts from weights rather than from random numbers."""
    return spec.model.pretrained is not None


@dataclass(frozen=True)
class SourceConfig:
    """Places of the data set and of the initial weights."""

    data: Path | None = None
    """Folder of the data set."""
    format: FormatName = "auto"
    train_annotations: Path | None = None
    """COCO JSON of the training split, where the layout cannot tell."""
    train_images: Path | None = None
    val_annotations: Path | None = None
    val_images: Path | None = None
    weights_file: Path | None = None
    """Local file of ImageNet weights (.pth or .safetensors) for machines without a network."""
    weights_digest: str | None = field(
        default=None, metadata=fields.identity("training", only_with=starts_from_weights)
    )
    """SHA-256 of the tensors in `weights_file`, filled in when a run is planned; None for the published weights."""

    def __post_init__(self) -> None:
        canonicalise(self, "source")


@dataclass(frozen=True)
class RuntimeConfig:
    """Place and manner of running; changes no result beyond floating-point rounding unless a field says so."""

    storage: Path | None = None
    """Folder of all runs; on a cluster it must be shared by all nodes. None: ./runs (inside a job: a printed one)."""
    name: str | None = None
    """Name of the run's folder. None: recipe, data set and training hash."""
    workers: int = field(default=1, metadata=fields.identity("training", only_with=depends_on_devices))
    """Training processes. They change results with loss.normaliser 'per_device' and backbone.norm 'batch' only."""
    min_workers: int | None = None
    """Ray only: go on with as few while nodes are missing, and with more again when they come; same images a step, same
    learning rate. None: always `workers`."""
    gpus_per_worker: int | None = None
    """None: one where the cluster (or this machine) has GPUs, else none."""
    cpus_per_worker: int = 1
    accumulation: int = field(default=1, metadata=fields.identity("training", only_with=depends_on_devices))
    """Micro-batches a step and worker; the global batch stays as the spec says. They change results as workers do."""
    loader_workers: int | None = None
    """Image loading processes of each worker; 0 loads in the training process. None: on GPUs the CPUs of the worker but
    one, at most 8, on CPUs 0."""
    check_images: bool = True
    """Decode every image once before the start. Verified images are remembered in the storage folder."""
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
        canonicalise(self, "runtime")
        for name, least in (
            ("workers", 1),
            ("gpus_per_worker", 0),
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
            if value is not None and value < least:
                raise ConfigError(f"expected at least {least}", field=f"runtime.{name}", value=value)
        if self.min_workers is not None and not 1 <= self.min_workers <= self.workers:
            raise ConfigError("expected 1 to runtime.workers", field="runtime.min_workers", value=self.min_workers)
        if not self.collective_timeout_s > 0:
            raise ConfigError("expected above 0", field="runtime.collective_timeout_s", value=self.collective_timeout_s)
        for name in ("name", "experiment", "tracking_uri"):
            if getattr(self, name) == "":
                raise ConfigError("expected a text that is not empty", field=f"runtime.{name}")
        if self.storage is not None and str(self.storage) in ("", "."):
            raise ConfigError(
                "expected the path of a folder",
                field="runtime.storage",
                value=str(self.storage),
                remedy="The present folder cannot be told from an empty option: give its full path",
            )


SMOKE_PREFIX = "smoke-"
"""Begins the recipe's name of a smoke run."""


@dataclass(frozen=True)
class PaperReference:
    """Row of the paper that an experiment reproduces."""

    table: str = ""
    row: str = ""
    changed: tuple[str, ...] = ()
    """Fields in which the experiment differs from the recipe of that row, and so from the paper."""


@dataclass(frozen=True)
class ExperimentSpec:
    """Everything that defines a run and its evaluation."""

    recipe: str = "experiment"
    paper: PaperReference = field(default_factory=PaperReference)
    model: DetectorConfig = field(default_factory=RetinaNetConfig, metadata=fields.identity("training"))
    loss: LossConfig = field(default_factory=LossConfig, metadata=fields.identity("training"))
    optim: OptimConfig = field(default_factory=OptimConfig, metadata=fields.identity("training"))
    data: DataConfig = field(default_factory=DataConfig, metadata=fields.identity("training"))
    scoring: ScoringConfig = field(default_factory=ScoringConfig, metadata=fields.identity("scoring"))
    protocol: Literal["coco", "voc"] = field(default="coco", metadata=fields.identity("scoring"))
    """COCO metrics, or these and VOC's 11-point and area AP."""
    seed: int = field(default=0, metadata=fields.identity("training"))
    source: SourceConfig = field(default_factory=SourceConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def __post_init__(self) -> None:
        canonicalise(self, "spec")
        if not 0 <= self.seed <= MAX_SEED:
            raise ConfigError(f"expected a number from 0 to {MAX_SEED}", field="seed", value=self.seed)
        if not isinstance(self.model, RetinaNetConfig) and self.loss != LossConfig():
            raise ConfigError(
                f"'{self.model.kind}' has losses of its own", field="loss", remedy="Leave the options of `loss` out"
            )
        if depends_on_devices(self) and self.runtime.min_workers is not None:
            raise ConfigError(
                "an elastic number of workers would change the results of loss.normaliser 'per_device' and of "
                "backbone.norm 'batch'",
                field="runtime.min_workers",
                value=self.runtime.min_workers,
                remedy="Leave it out",
            )

    @property
    def smoke(self) -> bool:
        """A quick check, whose numbers mean nothing."""
        return self.recipe.startswith(SMOKE_PREFIX)

    @property
    def training_hash(self) -> str:
        """16 hexadecimal digits that name the trained weights."""
        return training_hash(self)

    @property
    def validation_hash(self) -> str:
        """16 hexadecimal digits that name the selection of evaluated images."""
        return validation_hash(self)

    @property
    def scoring_hash(self) -> str:
        """16 hexadecimal digits that name the evaluated images and the way outputs become numbers."""
        return evaluation_hash(self)

    @property
    def trial_id(self) -> str:
        """Training and evaluation hash, shortened."""
        return trial_id(self)


def to_dict(value: Any) -> Any:
    """Plain JSON form of a spec or of any part of it."""
    return fields.to_dict(value)


def from_dict(tree: object, kind: type = ExperimentSpec, *, where: str = "spec") -> Any:
    """Inverse of `to_dict`; ConfigError for an unknown key, a value of another type or one outside its range."""
    return fields.from_dict(tree, kind, where=where)


def against_recipe(spec: ExperimentSpec, recipe: ExperimentSpec) -> ExperimentSpec:
    """The spec, saying in which fields besides the seed it differs from the recipe of the paper's row."""
    changed = tuple(name for name in changed_fields(recipe, spec) if name != "seed")
    return replace(spec, paper=replace(spec.paper, changed=changed))
