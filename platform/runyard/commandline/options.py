"""Options of an experiment's command line: the parts of a spec, the grid, and how to run. Imports no torch."""

from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal, Self

import tyro

from detector.config import DataConfig, DetectorConfig, LossConfig, OptimConfig, RetinaNetConfig, ScoringConfig
from runyard.spec import ExperimentSpec, RuntimeConfig, SourceConfig

_FLAT = tyro.conf.arg(name="")


@dataclass(frozen=True)
class SourceOptions(SourceConfig):
    """Places of the data set and of the initial weights."""

    weights_digest: tyro.conf.Suppress[str | None] = None


@dataclass(frozen=True)
class RuntimeOptions(RuntimeConfig):
    """The runtime of all trials."""

    name: str | None = None
    """Name of the sweep and its folder. None: the table, with a hash of the options that change its rows."""


@dataclass(frozen=True)
class Options:
    """Command line of one table: every row, seed and axis is a trial. Options of model, data ... hold for all rows."""

    rows: tuple[str, ...] = ()
    """Rows of the table. Run the command again to resume. Added rows are trained; removed rows keep their results."""
    seeds: int = 1
    """Train every row with the seeds 0 to N - 1."""
    vary: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Further axis, as FIELD=VALUE,VALUE: optim.learning_rate=0.005,0.01. May be given several times; every row runs
    with every combination."""
    test_split: str | None = None
    """Split that every trained detector is evaluated on as well; alpha is chosen on the validation split."""
    max_concurrent: int | None = None
    """Trainings at once. None: as many as the cluster can hold."""
    source: Annotated[SourceOptions, _FLAT] = field(default_factory=SourceOptions)
    runtime: Annotated[RuntimeOptions, _FLAT] = field(default_factory=RuntimeOptions)
    model: tyro.conf.AvoidSubcommands[DetectorConfig] = field(default_factory=RetinaNetConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    data: DataConfig = field(default_factory=DataConfig)
    scoring: ScoringConfig = field(default_factory=ScoringConfig)
    protocol: Literal["coco", "voc"] = "coco"
    """COCO metrics, or these and VOC's 11-point and area AP."""
    seed: int = 0
    """Seed of a single training."""
    smoke: bool = False
    """Quick end-to-end check on a tiny model, on generated images unless --data is given; its metrics mean nothing."""
    dry_run: bool = False
    """Print what would run, what it needs and its spec, then stop."""
    images_per_second: float | None = None
    """Measured training speed of one GPU: --dry-run turns it into GPU hours."""
    launcher: Literal["ray", "local"] = "ray"
    """'local' trains in this process with plain torch, one run after the other."""

    @classmethod
    def for_recipe(cls, spec: ExperimentSpec, **others: Any) -> Self:
        """Options whose defaults are a recipe's values, and those of `others`."""
        values = {f.name: getattr(spec, f.name) for f in fields(cls) if hasattr(spec, f.name)}
        source = SourceOptions(**{f.name: getattr(spec.source, f.name) for f in fields(SourceConfig)})
        runtime = RuntimeOptions(**{f.name: getattr(spec.runtime, f.name) for f in fields(RuntimeConfig)})
        return cls(**{**values, "source": source, "runtime": runtime, **others})
