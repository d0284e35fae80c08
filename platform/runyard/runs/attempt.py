"""One attempt at a run, in whatever process: it keeps others out, tells the journal the truth, and draws the reports.

Shared by the driver of a single run and by the trials of a sweep. Imports neither ray nor mlflow.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from detector.data.cache import load_dataset
from detector.evaluation.results import read_coco_results
from runyard.locks import held
from runyard.reports.galleries import draw_gallery
from runyard.reports.plots import plot_correlation, plot_training_curves
from runyard.runs.folder import RunFolder
from runyard.spec import ExperimentSpec, to_dict
from runyard.tracking.journal import Journal, RunStatus, effective_metrics
from runyard.training.stopping import stops_on_signals

Launcher = Literal["ray", "local"]
Artifact = tuple[Path, str]
"""A file worth keeping, and its folder among the run's artifacts."""

GALLERY_IMAGES = 9


def launch(spec: ExperimentSpec, folder: RunFolder, launcher: Launcher) -> dict[str, Any]:
    """Trains and evaluates a prepared run; Ray must have been connected. Returns the final metrics.

    SIGTERM and Ctrl-C, where this is the main thread, and `stopping.request_stop` end it in KeyboardInterrupt once the
    workers have written a checkpoint.
    """
    with stops_on_signals(folder):
        if launcher == "local":
            from runyard.training import local

            metrics = local.launch(spec, folder)
            assert metrics is not None, "the plain launcher was started as a rank other than 0"
            return metrics
        from runyard.training import ray_train

        return ray_train.launch(spec, folder)


def make_reports(spec: ExperimentSpec, folder: RunFolder) -> list[Artifact]:
    """Draws what a person wants to look at of a finished run; returns everything worth keeping."""
    dataset = load_dataset(folder.val_data(spec.validation_hash))
    evaluation = folder.evaluation(spec.scoring_hash)
    table = read_coco_results(evaluation.detections, dataset)
    plot_correlation(dataset, table, evaluation.correlation_plot, title=spec.recipe)
    curves = folder.plots / "training.png"
    plot_training_curves(effective_metrics(folder.journal), curves)
    gallery = evaluation.gallery_image("detections")
    draw_gallery(dataset, table, gallery, images=GALLERY_IMAGES)
    return [
        (evaluation.detections, "evaluation"),
        (evaluation.metrics, "evaluation"),
        (evaluation.correlation_plot, "plots"),
        (curves, "plots"),
        (gallery, "plots"),
        *((path, "checkpoint") for path in sorted(folder.checkpoints()[0].iterdir())),
    ]


@contextmanager
def journaled(journal: Path, params: ExperimentSpec, inputs: Sequence[Path] = ()) -> Iterator[list[Artifact]]:
    """Writes RUNNING on entry and how it ended on exit; what is put into the list it gives becomes artifacts.

    The journal is closed in between: whoever does the work may write to it.
    """
    with Journal(journal) as writer:
        writer.append("status", {"status": "RUNNING", "message": ""})
        writer.append("params", to_dict(params))
        for path in inputs:
            writer.append("artifact", {"path": str(path), "artifact_path": ""})
    artifacts: list[Artifact] = []
    status: RunStatus = "FAILED"
    message = ""
    try:
        yield artifacts
        status = "FINISHED"
    except (KeyboardInterrupt, SystemExit) as error:
        status, message = "KILLED", type(error).__name__
        raise
    except Exception as error:
        message = f"{type(error).__name__}: {error}"
        raise
    finally:
        close_journal(journal, status, message, artifacts if status == "FINISHED" else ())


def close_journal(journal: Path, status: RunStatus, message: str = "", artifacts: Sequence[Artifact] = ()) -> None:
    """Writes how a run has ended."""
    with Journal(journal) as writer:
        for path, artifact_path in artifacts:
            writer.append("artifact", {"path": str(path), "artifact_path": artifact_path})
        writer.append("status", {"status": status, "message": message})


@contextmanager
def only_process(folder: Path, what: str, *, wait: bool = False) -> Iterator[None]:
    """Keep every other process out of a folder; ConfigError, naming the other process, unless it is to `wait`."""
    with held(folder / "driver.lock", f"running this {what}", wait_s=None if wait else 0.0):
        yield
