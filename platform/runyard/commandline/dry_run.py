"""Output of a dry run: trainings with the trials that share them, what they need, and a cost estimate."""

import functools
from collections.abc import Sequence
from typing import Any

from detector.config import DataConfig
from detector.errors import ConfigError, DatasetError
from runyard.commandline.command import Command
from runyard.grid import Trial, by_training, labels
from runyard.spec import ExperimentSpec, SourceConfig, to_dict


def describe_command(command: Command, images_per_second: float | None = None) -> dict[str, Any]:
    """Each training, or finished run, once, with the trials that share it.

    Nothing is written and no image is read. Raises ConfigError for a speed that is not above 0 and for an unreadable
    file of weights, DatasetError for a data folder that does not exist.
    """
    names = labels(command.trials)
    groups = by_training(command.trials)
    for group in groups:
        _check_source(group[0].spec.source)
    trainings = [group[0].spec for group in groups] if command.trains else []
    return {
        "sweep": command.name,
        "trials": len(command.trials),
        "trainings": len(trainings),
        "estimated_gpu_hours": estimated_gpu_hours(trainings, images_per_second) if trainings else 0.0,
        "each_training" if command.trains else "each_finished_run": [
            _describe_group(group, names, command.trains, images_per_second) for group in groups
        ],
    }


def estimated_gpu_hours(trainings: Sequence[ExperimentSpec], images_per_second: float | None) -> float | str:
    """Hours of one GPU for all trainings, without evaluation, from a measured speed; else why there are none."""
    if images_per_second is None:
        return "not measured"
    if not images_per_second > 0:
        raise ConfigError("must be above 0", field="images_per_second", value=images_per_second)
    if any(spec.source.data is None and spec.source.train_annotations is None for spec in trainings):
        return "not known without --data"
    images = sum(spec.optim.epochs * _images_an_epoch(spec.source, spec.data) for spec in trainings)
    return round(images / images_per_second / 3600, 2)


def _describe_group(
    group: Sequence[Trial], names: dict[str, str], trains: bool, images_per_second: float | None
) -> dict[str, Any]:
    from runyard.runs.weights import with_weights_digest  # imports torch

    spec = with_weights_digest(group[0].spec)
    runtime = spec.runtime
    hours = {"estimated_gpu_hours": estimated_gpu_hours([spec], images_per_second)} if trains else {}
    return {
        "workers": runtime.workers,
        "cpus": runtime.workers * runtime.cpus_per_worker,
        "gpus_per_worker": "one each, where there are any"
        if runtime.gpus_per_worker is None
        else runtime.gpus_per_worker,
        "images_a_step": spec.optim.batch_size,
        "learning_rate": spec.optim.scaled_learning_rate,
        "training_hash": spec.training_hash,
        **hours,
        "trials": [
            {
                "label": names[trial.id],
                "id": trial.id,
                "scoring_hash": trial.spec.scoring_hash,
                "scoring": to_dict(trial.spec.scoring),
            }
            for trial in group
        ],
        "spec": to_dict(spec),
    }


def _check_source(source: SourceConfig) -> None:
    for name in ("data", "train_annotations", "train_images", "val_annotations", "val_images"):
        path = getattr(source, name)
        if path is not None and not path.expanduser().exists():
            raise DatasetError("no such file or folder", file=path, field=f"source.{name}", remedy="Check the path")


@functools.lru_cache
def _images_an_epoch(source: SourceConfig, data: DataConfig) -> int:
    from detector.data.epoch_plan import trainable_images
    from runyard.runs.data import open_unchecked

    train, _ = open_unchecked(ExperimentSpec(source=source, data=data))
    return len(trainable_images(train, data))
