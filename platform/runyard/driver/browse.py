"""Way to the results in the MLflow UI."""

import os
import shlex
import sys
from pathlib import Path

from detector.errors import InputError
from runyard.runs.manifest import without_secrets
from runyard.runs.storage import storage_folder
from runyard.spec import ExperimentSpec
from runyard.tracking.stores import resolve_tracking_uri
from runyard.tracking.ui import ui_command


def how_to_browse(spec: ExperimentSpec, experiment_id: str | None) -> str:
    """Command and address that show the runs of a located spec in the MLflow UI. Contacts no store; never raises.

    Args:
        experiment_id: opens the page of the experiment; None: the store's first page.
    """
    try:
        return _command_and_address(spec, experiment_id)
    except (OSError, RuntimeError, InputError) as error:  # the working or the home folder is gone
        return f"unknown ({error})"


def _command_and_address(spec: ExperimentSpec, experiment_id: str | None) -> str:
    storage = storage_folder(spec)
    uri = resolve_tracking_uri(spec.runtime.tracking_uri, storage)
    page = "" if experiment_id is None else f"/#/experiments/{experiment_id}?workflowType=machine_learning"
    if uri.startswith("http"):
        return f"open {without_secrets(uri)}{page}"
    runyard = Path(sys.executable).with_name("runyard")
    if runyard.exists() and spec.runtime.tracking_uri is None:
        command = shlex.join([_shortest(runyard), "ui", "--storage", _shortest(storage)])
    else:
        command = ui_command(uri)
    return f"{command}\n  and open http://127.0.0.1:5000{page}"


def _shortest(path: Path) -> str:
    """The path from the working directory where that is below it or near, else the path itself."""
    try:
        relative = os.path.relpath(path)
    except (OSError, ValueError):  # the working directory is gone
        return str(path)
    return relative if relative.count("..") <= 1 else str(path)
