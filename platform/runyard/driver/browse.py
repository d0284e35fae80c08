"""Way to the results in the MLflow UI."""

import os
import shlex
import sys
from contextlib import suppress
from pathlib import Path

from runyard.driver.tracked import open_tracker
from runyard.runs.manifest import without_secrets
from runyard.runs.storage import storage_folder
from runyard.spec import ExperimentSpec
from runyard.tracking.stores import TrackingError, resolve_tracking_uri
from runyard.tracking.ui import ui_command


def how_to_browse(spec: ExperimentSpec) -> str:
    """Command and address that show the runs of a located spec in the MLflow UI; never raises."""
    storage = storage_folder(spec)
    uri = resolve_tracking_uri(spec.runtime.tracking_uri, storage)
    page = ""
    with suppress(TrackingError):
        number = open_tracker(uri, spec.runtime.experiment).experiment_id()
        page = f"/#/experiments/{number}?workflowType=machine_learning"
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
