"""Runs that are finished, found again by their folders."""

import json
from dataclasses import replace
from pathlib import Path

from detector.errors import CheckpointError, ConfigError, InputError
from runyard.runs.folder import RunFolder
from runyard.spec import ExperimentSpec, from_dict


def finished_run(path: Path) -> ExperimentSpec:
    """The spec of a run whose training is finished, with the place where its folder lies now.

    Raises ConfigError where the folder holds no such run.
    """
    folder = RunFolder(path.expanduser().resolve())
    try:
        spec: ExperimentSpec = from_dict(json.loads(folder.spec.read_text()))
    except (OSError, ValueError) as error:
        remedy = "Give the folder of one run: the one that holds spec.json"
        raise ConfigError(f"is not the folder of a run ({_reason(error)})", file=folder.root, remedy=remedy) from error
    if not folder.evaluations() or not folder.checkpoints():
        raise ConfigError("its training is not finished", file=folder.root, remedy="Run its command again first")
    return replace(spec, runtime=replace(spec.runtime, storage=folder.root.parent, name=folder.root.name))


def final_checkpoint(folder: RunFolder) -> Path:
    """The weights of a finished run, not necessarily undamaged; CheckpointError where there are none."""
    checkpoints = folder.checkpoints()
    if not checkpoints:
        raise CheckpointError("the run has no checkpoint", file=folder.root, remedy="Train it first")
    return checkpoints[0]


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"{error.strerror}: {error.filename}"
    return str(error) if isinstance(error, InputError) else "spec.json is no JSON"
