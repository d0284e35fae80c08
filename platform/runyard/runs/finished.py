"""Finished runs, found by their folders."""

from dataclasses import replace
from pathlib import Path

from detector.errors import CheckpointError, ConfigError
from runyard.runs.folder import RunFolder
from runyard.runs.prepare import begun_spec
from runyard.spec import ExperimentSpec


def finished_run(path: Path) -> ExperimentSpec:
    """The spec that a finished run was begun with, with the place where its folder lies now.

    Raises ConfigError where the folder holds no such run, and CheckpointError where its checkpoints were removed.
    """
    folder = RunFolder(path.expanduser().resolve())
    spec = begun_spec(folder)
    if spec is None:
        remedy = "Give the folder of one run: the one that holds spec.json"
        raise ConfigError("is not the folder of a run", file=folder.root, remedy=remedy)
    if not is_trained(folder, spec):
        raise ConfigError("its training is not finished", file=folder.root, remedy="Run its command again first")
    final_checkpoint(folder)
    return replace(spec, runtime=replace(spec.runtime, storage=folder.root.parent, name=folder.root.name))


def final_checkpoint(folder: RunFolder) -> Path:
    """Weights of a finished run, not necessarily undamaged; CheckpointError where they were removed."""
    checkpoints = folder.checkpoints()
    if not checkpoints:
        # A finished run is not trained again: only another folder, or none, makes its command train.
        remedy = "Train it under another --storage or --name, or remove the run's folder and train it again"
        raise CheckpointError("the finished run's checkpoints were removed", file=folder.root, remedy=remedy)
    return checkpoints[0]


def is_trained(folder: RunFolder, begun: ExperimentSpec) -> bool:
    """True if the training is finished: it ends with the evaluation that the run was begun with."""
    return folder.evaluation(begun.scoring_hash).metrics.exists()
