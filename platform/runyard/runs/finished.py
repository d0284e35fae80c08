"""Finished runs, found by their folders."""

from dataclasses import replace
from pathlib import Path

from detector.errors import CheckpointError, ConfigError
from runyard.runs.folder import RunFolder
from runyard.runs.prepare import begun_spec
from runyard.spec import ExperimentSpec


def finished_run(path: Path) -> ExperimentSpec:
    """The spec that a finished run was begun with, with the place where its folder lies now.

    Raises ConfigError where the folder holds no such run.
    """
    folder = RunFolder(path.expanduser().resolve())
    spec = begun_spec(folder)
    if spec is None:
        remedy = "Give the folder of one run: the one that holds spec.json"
        raise ConfigError("is not the folder of a run", file=folder.root, remedy=remedy)
    if not is_trained(folder, spec):
        raise ConfigError("its training is not finished", file=folder.root, remedy="Run its command again first")
    return replace(spec, runtime=replace(spec.runtime, storage=folder.root.parent, name=folder.root.name))


def final_checkpoint(folder: RunFolder) -> Path:
    """Weights of a finished run, not necessarily undamaged; CheckpointError where there are none."""
    checkpoints = folder.checkpoints()
    if not checkpoints:
        raise CheckpointError("the run has no checkpoint", file=folder.root, remedy="Train it first")
    return checkpoints[0]


def is_trained(folder: RunFolder, begun: ExperimentSpec) -> bool:
    """True if the training is finished: it ends with the evaluation that the run was begun with."""
    return folder.evaluation(begun.scoring_hash).metrics.exists() and bool(folder.checkpoints())
