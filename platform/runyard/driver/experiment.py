"""One experiment from spec to results, as the driver sees it: prepare, launch, track, report, and tell the truth.

The driver alone talks to MLflow: it follows the run's journal in the background, so that training neither waits for
the tracking server nor ends with it.
"""

import functools
import json
import os
import shlex
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from detector.data.cache import load_dataset
from detector.data.samples import Dataset
from detector.data.synthetic import generate_shapes
from detector.errors import ConfigError
from detector.evaluation.results import DetectionTable, read_coco_results
from runyard.driver.progress import ProgressPrinter
from runyard.runs.attempt import Launcher, journaled, launch, make_reports, only_process
from runyard.runs.folder import EvaluationFolder, RunFolder
from runyard.runs.manifest import without_secrets
from runyard.runs.prepare import PreparedRun, default_storage, prepare, storage_folder
from runyard.spec import ExperimentSpec
from runyard.tracking.journal import last_status
from runyard.tracking.replay import CLOSE_S, JournalReplayer
from runyard.tracking.runs import TrackedRun
from runyard.tracking.stores import (
    TrackingError,
    TrackingUnavailableError,
    resolve_tracking_uri,
    sqlite_file,
    sqlite_lock,
)
from runyard.tracking.sync import remember_run, sync, unsent_notice
from runyard.tracking.ui import ui_command
from runyard.tracking.uploader import JournalUploader

if TYPE_CHECKING:
    from runyard.tracking.mlflow_tracker import MlflowTracker

SMOKE_IMAGES = (32, 16, 96)
REPLAY_TIMEOUT_S = CLOSE_S


@dataclass(frozen=True)
class RunOutcome:
    """A finished run."""

    spec: ExperimentSpec
    folder: RunFolder
    metrics: dict[str, float]
    tracking_uri: str

    @property
    def evaluation(self) -> EvaluationFolder:
        """Detections, metrics and plots of the final weights."""
        return self.folder.evaluation(self.spec.scoring_hash)

    def load_detections(self) -> tuple[Dataset, DetectionTable]:
        """The validation split and what was found in it."""
        dataset = load_dataset(self.folder.val_data(self.spec.validation_hash))
        return dataset, read_coco_results(self.evaluation.detections, dataset)


def run_experiment(
    spec: ExperimentSpec,
    *,
    launcher: Launcher = "ray",
    smoke: bool = False,
    runtime_env: dict[str, Any] | None = None,
    console: Console | None = None,
) -> RunOutcome:
    """Trains and evaluates a spec, or continues it, or shows that it is finished.

    Args:
        smoke: generate a few images where the spec names no data.
        runtime_env: for Ray's workers, from `experiments/_bootstrap.py`.

    Raises InputError for what the user has to mend; the run is then not started, or marked FAILED.
    """
    console = console or Console()
    if smoke and spec.source.data is None:
        spec = with_smoke_data(spec)
    prepared = prepare(spec)
    # The prepared spec is written down, so it holds no credentials: this one may.
    uri = resolve_tracking_uri(spec.runtime.tracking_uri, prepared.folder.root.parent)
    spec, folder = prepared.spec, prepared.folder
    outcome = RunOutcome(spec, folder, {}, uri)
    console.print(
        f"[bold]{folder.root.name}[/bold]: {prepared.train_images} training, {prepared.val_images} validation images"
    )
    if prepared.skipped:
        console.print(f"  left out as unusable, listed in {folder.manifest.name}: {prepared.skipped}", style="yellow")
    console.print(f"  folder   {folder.root}", highlight=False, soft_wrap=True)
    with only_process(folder.root, "experiment"):
        # A driver that died between the evaluation and the end has left reports and the tracked status undone.
        if outcome.evaluation.metrics.exists() and last_status(folder.journal) == "FINISHED":
            console.print("  finished before; nothing to do")
            _upload_rest(folder, uri, console)
            return replace(outcome, metrics=json.loads(outcome.evaluation.metrics.read_text()))
        tracker = functools.cache(functools.partial(_tracker, uri, spec.runtime.experiment))
        answers = _answers(uri, tracker)
        if launcher == "ray":
            # Before the replayer's thread imports MLflow: both import pandas and pyarrow, and two threads that import a
            # package at once can meet half of it.
            from runyard.training import ray_cluster, ray_train  # noqa: F401

            ray_cluster.connect(runtime_env or {})
        run = TrackedRun(folder.root.name, folder.root.name, tags=run_tags(spec, prepared))
        remember_run(folder, spec.runtime.experiment, run)
        replayer: JournalReplayer | None = None
        try:
            with (
                ProgressPrinter(folder.journal, console),
                journaled(folder.journal, spec, prepared.inputs) as artifacts,
            ):
                if answers:
                    with suppress(TrackingUnavailableError):
                        JournalUploader(folder.journal, tracker(), run).open()  # we may look, but may we write?
                replayer = JournalReplayer(tracker)
                replayer.follow(folder.journal, run)
                outcome = replace(outcome, metrics=launch(spec, folder, launcher))
                artifacts += make_reports(spec, folder)
        finally:
            left = replayer.close(REPLAY_TIMEOUT_S) if replayer is not None else 0
            if notice := unsent_notice(left, folder.root, uri, spec.runtime.tracking_uri):
                console.print(notice, highlight=False, markup=False, soft_wrap=True)
    return outcome


def _tracker(uri: str, experiment: str) -> "MlflowTracker":
    from runyard.tracking.mlflow_tracker import MlflowTracker  # takes a second

    return MlflowTracker(uri, experiment)


def _answers(uri: str, tracker: "Callable[[], MlflowTracker]") -> bool:
    """Whether there is a store that answers; TrackingError where it refuses us, so that the run ends before it starts.

    One that is away is no reason to: the replayer says so, and goes on trying. Nor is a SQLite file that does not exist
    yet, which takes MLflow seconds to make: that is left to the replayer.
    """
    database = sqlite_file(uri)
    if database is not None and not database.exists():
        with sqlite_lock(uri):  # it could be made
            return False
    try:
        tracker().experiment_id()
    except TrackingUnavailableError:
        return False
    return True


def _upload_rest(folder: RunFolder, uri: str, console: Console) -> None:
    """What the driver that finished the run could not upload."""
    if not folder.tracking.exists():
        return
    try:
        count = sync(folder, uri)
    except TrackingUnavailableError as error:
        console.print(f"  {error}", highlight=False, soft_wrap=True)
        return
    if count:
        console.print(f"  {count} records were not in {without_secrets(uri)} yet; now they are")


def how_to_browse(spec: ExperimentSpec) -> str:
    """What to type, and which page to open, to see the runs of a prepared spec in the MLflow UI."""
    storage = storage_folder(spec)
    uri = resolve_tracking_uri(spec.runtime.tracking_uri, storage)
    page = ""
    with suppress(TrackingError):
        # MLflow 3 opens on its page for language models unless it is told otherwise.
        number = _tracker(uri, spec.runtime.experiment).experiment_id()
        page = f"/#/experiments/{number}?workflowType=machine_learning"
    if uri.startswith("http"):
        return f"open {without_secrets(uri)}{page}"
    runyard = Path(sys.executable).with_name("runyard")
    if runyard.exists() and spec.runtime.tracking_uri is None:
        command = shlex.join([os.path.relpath(runyard), "ui", "--storage", os.path.relpath(storage)])
    else:
        command = ui_command(uri)
    return f"{command}\n  and open http://127.0.0.1:5000{page}"


def run_tags(spec: ExperimentSpec, prepared: PreparedRun) -> dict[str, str]:
    """What a tracked run can be searched by besides its parameters; `spec` may differ from the run's in its scoring."""
    source = prepared.manifest["source"]
    tags = {
        "recipe": spec.recipe,
        "paper_table": spec.paper.table,
        "paper_row": spec.paper.row,
        "paper_changed": ", ".join(spec.paper.changed),
        "dataset": str(spec.source.data or spec.source.train_annotations),
        "training_hash": spec.training_hash,
        "scoring_hash": spec.scoring_hash,
        "git_sha": source["git_sha"] or "unknown",
        "source_sha256": source["files_sha256"],
        "run_folder": str(prepared.folder.root),
        "skipped_images": prepared.skipped,
    }
    return {name: value for name, value in tags.items() if value}


def with_smoke_data(spec: ExperimentSpec) -> ExperimentSpec:
    """The spec with a small generated data set, which is made where it is missing."""
    storage = (spec.runtime.storage or default_storage()).expanduser().resolve()
    data = generated_data(storage / "smoke-shapes", *SMOKE_IMAGES)
    # The generated set has the splits that COCO has, whatever the recipe's data set calls its own.
    splits = replace(spec.data, train_split="train", val_split="val")
    return replace(spec, source=replace(spec.source, data=data), data=splits)


def generated_data(folder: Path, train_images: int, val_images: int, image_size: int) -> Path:
    """`generate_shapes`, seed 0; ConfigError where the folder cannot be written."""
    try:
        return generate_shapes(folder, train_images=train_images, val_images=val_images, image_size=image_size, seed=0)
    except OSError as error:
        raise ConfigError(
            f"cannot be written ({error.strerror})", field="runtime.storage", file=folder,
            remedy="Name a folder with --storage that this user may write to",
        ) from error  # fmt: skip
