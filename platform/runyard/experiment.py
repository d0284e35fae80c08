"""One experiment from spec to results, as the driver sees it: prepare, launch, track, report, and tell the truth.

The driver alone talks to MLflow: it follows the run's journal in the background, so that training neither waits for
the tracking server nor ends with it.
"""

import fcntl
import json
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from detector.data.cache import load_dataset
from detector.data.samples import Dataset
from detector.data.shapes import generate_shapes
from detector.errors import ConfigError
from detector.evaluation.results import DetectionTable, read_coco_results
from runyard.layout import EvaluationFolder, RunFolder
from runyard.progress import ProgressPrinter
from runyard.reports.galleries import draw_gallery
from runyard.reports.plots import plot_correlation, plot_training_curves
from runyard.spec import ExperimentSpec, to_dict
from runyard.tracking.journal import Journal, RunStatus, effective_metrics
from runyard.tracking.mlflow_tracker import MlflowTracker, TrackedRun
from runyard.tracking.replay import JournalReplayer, remember_run
from runyard.tracking.stores import resolve_tracking_uri, ui_command
from runyard.training.prepare import PreparedRun, default_storage, prepare

SMOKE_IMAGES = (32, 16, 128)
GALLERY_IMAGES = 9
REPLAY_TIMEOUT_S = 60.0


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
        dataset = load_dataset(self.folder.dataset("val"))
        return dataset, read_coco_results(self.evaluation.detections, dataset)


def run_experiment(
    spec: ExperimentSpec,
    *,
    launcher: Literal["ray", "local"] = "ray",
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
        spec = _with_smoke_data(spec)
    prepared = prepare(spec)
    spec, folder = prepared.spec, prepared.folder
    uri = resolve_tracking_uri(spec.runtime.tracking_uri, folder.root.parent)
    outcome = RunOutcome(spec, folder, {}, uri)
    console.print(
        f"[bold]{folder.root.name}[/bold]: {prepared.train_images} training, {prepared.val_images} validation images"
    )
    console.print(f"  folder   {folder.root}", highlight=False, soft_wrap=True)
    with _only_driver(folder):
        if outcome.evaluation.metrics.exists():
            console.print("  finished before; nothing to do")
            return replace(outcome, metrics=json.loads(outcome.evaluation.metrics.read_text()))
        tracker = MlflowTracker(uri, spec.runtime.experiment)
        tracker.experiment_id()
        run = _tracked_run(prepared)
        remember_run(folder, spec.runtime.experiment, run)
        _open_journal(prepared)
        replayer = JournalReplayer(folder.journal, tracker, run)
        with ProgressPrinter(folder.journal, console):
            status: RunStatus = "FAILED"
            message = ""
            try:
                metrics = _launch(spec, folder, launcher, runtime_env)
                outcome = replace(outcome, metrics=metrics)
                artifacts = make_reports(outcome)
                status = "FINISHED"
            except KeyboardInterrupt as error:
                status, message, artifacts = "KILLED", type(error).__name__, []
                raise
            except Exception as error:
                message, artifacts = f"{type(error).__name__}: {error}", []
                raise
            finally:
                _close_journal(folder, status, message, artifacts)
                left = replayer.close(REPLAY_TIMEOUT_S)
        if left:
            console.print(f"  {left} records did not reach {uri}; `runyard sync {folder.root}` uploads them later")
    return outcome


def how_to_browse(outcome: RunOutcome) -> str:
    """The one command that opens the MLflow UI on an outcome's store."""
    runyard = Path(sys.executable).with_name("runyard")
    if not runyard.exists() or outcome.spec.runtime.tracking_uri is not None:
        return ui_command(outcome.tracking_uri)
    return shlex.join([os.path.relpath(runyard), "ui", "--storage", os.path.relpath(outcome.folder.root.parent)])


def make_reports(outcome: RunOutcome) -> list[tuple[Path, str]]:
    """Draws what a person wants to look at; returns (file, artifact folder) for everything worth keeping."""
    dataset, table = outcome.load_detections()
    evaluation = outcome.evaluation
    plot_correlation(dataset, table, evaluation.correlation_plot, title=outcome.spec.recipe)
    curves = outcome.folder.plots / "training.png"
    plot_training_curves(effective_metrics(outcome.folder.journal), curves)
    gallery = evaluation.gallery_image("detections")
    draw_gallery(dataset, table, gallery, images=GALLERY_IMAGES)
    return [
        (evaluation.detections, "evaluation"),
        (evaluation.metrics, "evaluation"),
        (evaluation.correlation_plot, "plots"),
        (curves, "plots"),
        (gallery, "plots"),
        *((path, "checkpoint") for path in sorted(outcome.folder.checkpoints()[0].iterdir())),
    ]


def _launch(
    spec: ExperimentSpec, folder: RunFolder, launcher: Literal["ray", "local"], runtime_env: dict[str, Any] | None
) -> dict[str, float]:
    if launcher == "local":
        from runyard.training import local

        metrics = local.launch(spec, folder)
        assert metrics is not None, "the plain launcher was started as a rank other than 0"
        return metrics
    from runyard.training import ray_train

    ray_train.connect(spec, runtime_env or {})
    return ray_train.launch(spec, folder)


def _tracked_run(prepared: PreparedRun) -> TrackedRun:
    spec = prepared.spec
    source = prepared.manifest["source"]
    tags = {
        "recipe": spec.recipe,
        "paper_table": spec.paper.table,
        "paper_row": spec.paper.row,
        "dataset": str(spec.source.data or spec.source.train_annotations),
        "training_hash": spec.training_hash,
        "scoring_hash": spec.scoring_hash,
        "git_sha": source["git_sha"] or "unknown",
        "source_sha256": source["files_sha256"],
        "run_folder": str(prepared.folder.root),
    }
    return TrackedRun(
        identity=prepared.folder.root.name, name=prepared.folder.root.name, tags={k: v for k, v in tags.items() if v}
    )


def _open_journal(prepared: PreparedRun) -> None:
    with Journal(prepared.folder.journal) as journal:
        journal.append("status", {"status": "RUNNING", "message": ""})
        journal.append("params", to_dict(prepared.spec))
        for path in (prepared.folder.spec, prepared.folder.manifest):
            journal.append("artifact", {"path": str(path), "artifact_path": ""})


def _close_journal(folder: RunFolder, status: RunStatus, message: str, artifacts: list[tuple[Path, str]]) -> None:
    with Journal(folder.journal) as journal:
        for path, artifact_path in artifacts:
            journal.append("artifact", {"path": str(path), "artifact_path": artifact_path})
        journal.append("status", {"status": status, "message": message})


def _with_smoke_data(spec: ExperimentSpec) -> ExperimentSpec:
    storage = (spec.runtime.storage or default_storage()).expanduser().resolve()
    train_images, val_images, image_size = SMOKE_IMAGES
    data = generate_shapes(
        storage / "smoke-shapes", train_images=train_images, val_images=val_images, image_size=image_size, seed=0
    )
    return replace(spec, source=replace(spec.source, data=data))


@contextmanager
def _only_driver(folder: RunFolder) -> Iterator[None]:
    """Keeps a second driver out of the run; the system gives the lock free when this process dies."""
    descriptor = os.open(folder.root / "driver.lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                "another process is running this experiment", file=folder.root, remedy="Wait for it, or stop it"
            ) from None
        yield
    finally:
        os.close(descriptor)
