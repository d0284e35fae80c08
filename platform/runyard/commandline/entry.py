"""What every experiment's command line shares: typed options over the spec, smoke and dry runs, one-line errors.

Showing the help imports no torch: whatever needs it is imported when a run really starts.
"""

import argparse
import functools
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, Literal, Self

import tyro

from detector.config import DataConfig, LossConfig, OptimConfig, RetinaNetConfig, ScoringConfig
from detector.errors import ConfigError, InputError
from runyard.failures import NonFiniteLossError, Terminated, TrainingError
from runyard.spec import ExperimentSpec, RuntimeConfig, SourceConfig, against_recipe, to_dict

_FLAT = tyro.conf.arg(name="")


@dataclass(frozen=True)
class CommonOptions:
    """What the command lines of one experiment and of a sweep have in common: the parts of a spec, and how to run."""

    source: Annotated[SourceConfig, _FLAT] = field(default_factory=SourceConfig)
    runtime: Annotated[RuntimeConfig, _FLAT] = field(default_factory=RuntimeConfig)
    model: RetinaNetConfig = field(default_factory=RetinaNetConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    data: DataConfig = field(default_factory=DataConfig)
    scoring: ScoringConfig = field(default_factory=ScoringConfig)
    protocol: Literal["coco", "voc"] = "coco"
    smoke: bool = False
    """Everything made tiny, on generated images unless --data is given: it proves that all runs, no more."""
    dry_run: bool = False
    """Print what would run, what it needs and its spec, then stop."""
    images_per_second: float | None = None
    """What you have measured one GPU to train: --dry-run turns it into GPU hours."""
    launcher: Literal["ray", "local"] = "ray"
    """'local' trains in this process with plain torch, one run after the other."""

    @classmethod
    def of(cls, spec: ExperimentSpec, **others: Any) -> Self:
        """The options whose defaults are a recipe's values, and those of `others`."""
        return cls(**{f.name: getattr(spec, f.name) for f in fields(cls) if hasattr(spec, f.name)}, **others)

    def apply(self, spec: ExperimentSpec) -> ExperimentSpec:
        """The recipe with these values in it, and the names of those that change what the paper did."""
        given = {f.name: getattr(self, f.name) for f in fields(self) if hasattr(spec, f.name)}
        return against_recipe(replace(spec, **given), spec)


@dataclass(frozen=True)
class Options(CommonOptions):
    """The command line of one experiment."""

    seed: int = 0
    row: str = ""
    """Which of the table's rows, where there are several."""


def parse(
    recipe: Callable[[str], ExperimentSpec],
    rows: Sequence[str],
    smoke: Callable[[ExperimentSpec], ExperimentSpec],
    description: str,
    arguments: Sequence[str] | None = None,
) -> tuple[ExperimentSpec, Options]:
    """The spec that a command line asks for: a row's recipe, made tiny for --smoke, with the typed options over it."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    # These two decide the defaults of all others, so they are read first.
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--row", choices=rows, default=rows[0])
    first.add_argument("--smoke", action="store_true")
    chosen, _ = first.parse_known_args(arguments)
    spec = recipe(chosen.row)
    if chosen.smoke:
        spec = smoke(spec)
    options = tyro.cli(Options, default=Options.of(spec, row=chosen.row), args=arguments, description=description)
    return options.apply(spec), options


def main(run: Callable[[], None]) -> int:
    """Runs a command; returns its exit status.

    A user's mistake becomes one line and status 2, a failed training its first traceback, a line and status 1, an
    interruption status 130 or 143.
    """
    signal.signal(signal.SIGTERM, _terminate)
    try:
        run()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (TrainingError, NonFiniteLossError) as error:
        print(*getattr(error, "__notes__", ()), f"error: {error}", sep="\n", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # The reader (`| head`) has seen enough; without this Python complains again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt as interruption:
        print("interrupted; the same command continues the run", file=sys.stderr)
        return 143 if isinstance(interruption, Terminated) else 130
    return 0


def describe(spec: ExperimentSpec, images_per_second: float | None = None) -> dict[str, Any]:
    """What a dry run prints."""
    runtime = spec.runtime
    return {
        "trials": 1,
        "workers": runtime.workers,
        "cpus": runtime.workers * runtime.cpus_per_worker,
        "gpus_per_worker": "one each, where there are any"
        if runtime.gpus_per_worker is None
        else runtime.gpus_per_worker,
        "images_a_step": spec.optim.batch_size,
        "learning_rate": spec.optim.scaled_learning_rate,
        "training_hash": spec.training_hash,
        "scoring_hash": spec.scoring_hash,
        "estimated_gpu_hours": estimated_gpu_hours([spec], images_per_second),
        "spec": to_dict(spec),
    }


def estimated_gpu_hours(trainings: Sequence[ExperimentSpec], images_per_second: float | None) -> float | str:
    """Hours of one GPU for all trainings, without evaluation, from a measured speed; else why there are none.

    Raises ConfigError for a speed that is none, and as `open_data`.
    """
    if images_per_second is None:
        return "not measured"
    if not images_per_second > 0:
        raise ConfigError("must be above 0", field="images_per_second", value=images_per_second)
    if any(spec.source.data is None and spec.source.train_annotations is None for spec in trainings):
        return "not known without --data"
    images = sum(spec.optim.epochs * _images_an_epoch(spec.source, spec.data) for spec in trainings)
    return round(images / images_per_second / 3600, 2)


@functools.lru_cache
def _images_an_epoch(source: SourceConfig, data: DataConfig) -> int:
    from detector.data.epoch_plan import trainable_images
    from runyard.runs.prepare import open_data

    train, _ = open_data(ExperimentSpec(source=source, data=data))
    return len(trainable_images(train, data))


def print_dry_run(spec: ExperimentSpec, images_per_second: float | None = None) -> None:
    """Prints `describe` as JSON; its `spec` is what the plain-torch launcher reads."""
    print(json.dumps(describe(spec, images_per_second), indent=1))


def _terminate(signum: int, frame: object) -> None:
    raise Terminated
