"""Layout of the storage folder: the paths of everything that a run, an evaluation and a sweep keep."""

from dataclasses import dataclass
from pathlib import Path

from runyard.runs.names import safe_name, short_hash


@dataclass(frozen=True)
class RecordFolder:
    """A folder with a journal that is repeated in one tracked run."""

    root: Path

    @property
    def journal(self) -> Path:
        """Everything measured, as JSON lines."""
        return self.root / "journal.jsonl"

    @property
    def tracking(self) -> Path:
        """Experiment, name and identity of the tracked run; `runyard sync` reads it."""
        return self.root / "tracking.json"

    @property
    def lock(self) -> Path:
        """Lock of the process that works in the folder."""
        return self.root / "driver.lock"


@dataclass(frozen=True)
class EvaluationFolder(RecordFolder):
    """One evaluation: the final weights of a run on one selection of images under one scoring."""

    @property
    def spec(self) -> Path:
        """Specification of the evaluation."""
        return self.root / "spec.json"

    @property
    def detections(self) -> Path:
        """COCO result JSON with the data set's own category ids; an export, not read again."""
        return self.root / "detections.json"

    @property
    def metrics(self) -> Path:
        """Metrics by name; written last, so that an evaluation with metrics is complete."""
        return self.root / "metrics.json"

    @property
    def resampled(self) -> Path:
        """AP on resamples of the images."""
        return self.root / "resampled.npz"

    @property
    def correlation_plot(self) -> Path:
        """Plot of confidence against true IoU."""
        return self.root / "correlation.png"

    def gallery_image(self, name: str) -> Path:
        """Picture of detections under a name."""
        return self.root / "gallery" / f"{safe_name(name)}.png"


@dataclass(frozen=True)
class RunFolder(RecordFolder):
    """One training and its evaluations; can be moved as a whole."""

    @property
    def spec(self) -> Path:
        """Specification that the run was begun with; written once."""
        return self.root / "spec.json"

    @property
    def manifest(self) -> Path:
        """Sources, versions, machine, data and weights that the run was begun with; written once."""
        return self.root / "manifest.json"

    @property
    def attempts(self) -> Path:
        """One JSON line for each start of the training; only grows."""
        return self.root / "attempts.jsonl"

    @property
    def stop_request(self) -> Path:
        """An empty file that asks the workers to write a checkpoint and end; they look for it at every step."""
        return self.root / "stop-requested"

    @property
    def plots(self) -> Path:
        """Folder of the training's plots."""
        return self.root / "plots"

    @property
    def initial_weights(self) -> Path:
        """Weights that training starts from, copied here so that every worker finds the same file."""
        return self.root / "initial_weights.safetensors"

    def checkpoint(self, step: int) -> Path:
        """Checkpoint after `step` optimiser steps; a folder, direct child of the run's because Ray wants it so."""
        return self.root / f"checkpoint-{step:09d}"

    def checkpoints(self) -> list[Path]:
        """All complete checkpoints, newest first."""
        return sorted(self.root.glob("checkpoint-*"), reverse=True)

    @property
    def train_data(self) -> Path:
        """Validated annotations of the training split in the form that workers read."""
        return self.root / "data" / "train.npz"

    def val_data(self, validation_hash: str) -> Path:
        """The same of one selection of evaluated images."""
        return self.root / "data" / f"val-{short_hash(validation_hash)}.npz"

    def evaluation(self, scoring_hash: str) -> EvaluationFolder:
        """Folder of the final weights' evaluation under an evaluation hash."""
        return EvaluationFolder(self.root / "evaluation" / short_hash(scoring_hash))

    def candidates(self, validation_hash: str) -> Path:
        """Store of the final weights' outputs on one selection of images, for scoring."""
        return self.root / f"candidates-{short_hash(validation_hash)}"

    def oracle(self, scoring_hash: str) -> EvaluationFolder:
        """Folder of a scoring that ranks by the true IoU; not an evaluation of the run."""
        return EvaluationFolder(self.root / "oracle" / short_hash(scoring_hash))

    def evaluations(self) -> list[EvaluationFolder]:
        """All complete evaluations."""
        return [EvaluationFolder(path.parent) for path in sorted(self.root.glob("evaluation/*/metrics.json"))]


@dataclass(frozen=True)
class SweepFolder(RecordFolder):
    """Files of a sweep besides the folders of its runs."""

    @classmethod
    def in_storage(cls, storage: Path, name: str) -> "SweepFolder":
        """Folder of the sweep with a name."""
        return cls(storage / "sweeps" / safe_name(name))

    @property
    def trials(self) -> Path:
        """Every trial of the sweep: specification, row, and where its results lie."""
        return self.root / "trials.json"

    @property
    def results(self) -> Path:
        """Folder of tables and plots."""
        return self.root / "results"

    @property
    def tune(self) -> Path:
        """Folder of Ray Tune's own files, removed after use."""
        return self.root / ".tune"
