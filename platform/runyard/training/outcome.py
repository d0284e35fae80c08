"""End of an attempt at a run: status in the journal, plots and artifacts. Imports neither ray nor mlflow."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from runyard.runs.folder import RunFolder
from runyard.spec import ExperimentSpec, to_dict
from runyard.tracking.journal import Journal, RunStatus, effective_metrics

Artifact = tuple[Path, str]
"""A file worth keeping, and its folder among the run's artifacts."""

GALLERY_IMAGES = 9


def make_reports(spec: ExperimentSpec, folder: RunFolder) -> list[Artifact]:
    """Draw what a person looks at of a finished run; returns everything worth keeping."""
    from runyard.reports.galleries import draw_gallery
    from runyard.reports.plots import plot_correlation, plot_training_curves
    from runyard.scoring.results import stored_detections

    dataset, table = stored_detections(spec, folder)
    evaluation = folder.evaluation(spec.scoring_hash)
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
    """Write RUNNING on entry and how it ended on exit; files put into the list it gives become artifacts.

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
    """Write how a run has ended."""
    with Journal(journal) as writer:
        for path, artifact_path in artifacts:
            writer.append("artifact", {"path": str(path), "artifact_path": artifact_path})
        writer.append("status", {"status": status, "message": message})
