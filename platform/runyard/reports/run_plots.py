"""Plots of a finished run, and the list of everything of it that is worth keeping."""

from runyard.reports.galleries import draw_gallery
from runyard.reports.plots import plot_correlation, plot_training_curves
from runyard.runs.folder import RunFolder
from runyard.scoring.results import stored_detections
from runyard.spec import ExperimentSpec
from runyard.tracking.journal import effective_metrics
from runyard.tracking.outcome import Artifact

GALLERY_IMAGES = 9


def make_reports(spec: ExperimentSpec, folder: RunFolder) -> list[Artifact]:
    """Draw what a person looks at of a finished run; returns everything worth keeping."""
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
