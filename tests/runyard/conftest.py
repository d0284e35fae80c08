"""A store of each test's own, and jobs that are done in milliseconds."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from detector.config import ScoringConfig
from detector.files import write_json
from runyard.driver.jobs import Job
from runyard.spec import ExperimentSpec
from runyard.tracking.journal import Journal
from runyard.tracking.outcome import journaled
from runyard.training.launch import Launcher


@pytest.fixture
def spec(make_tiny_spec: Callable[[Path], ExperimentSpec], empty_store: Path, tmp_path: Path) -> ExperimentSpec:
    """A run of two steps, beside an empty MLflow store."""
    storage = tmp_path / "runs"
    storage.mkdir()
    shutil.copy(empty_store, storage / "mlflow.db")
    tiny = make_tiny_spec(storage)
    return replace(
        tiny,
        optim=replace(tiny.optim, epochs=1, milestones=(), warmup_steps=1, batch_size=6),
        runtime=replace(tiny.runtime, name=None),
    )


@pytest.fixture
def rows(spec: ExperimentSpec) -> dict[str, ExperimentSpec]:
    """Six trials of two trainings."""
    baseline = replace(spec, recipe="tiny-baseline", model=replace(spec.model, iou_head=False))
    none = replace(spec, recipe="tiny-iou", scoring=ScoringConfig(confidence="none"))
    alphas = {str(alpha): replace(none, scoring=ScoringConfig(alpha=alpha)) for alpha in (1.0, 0.7, 0.5, 0.3)}
    return {"baseline": baseline, "none": none, **alphas}


@dataclass
class Work:
    """Stand-in for training and scoring."""

    done: list[str] = field(default_factory=list)
    """Labels of the jobs that were done, in order."""
    errors: dict[str, BaseException] = field(default_factory=dict)
    """By label: raised in the middle of the job."""
    deaths: dict[str, BaseException] = field(default_factory=dict)
    """By label: the job ends without another word in its journal."""

    def __call__(self, job: Job, launcher: Launcher) -> None:
        """Leave what the real job leaves: a journal and metrics."""
        self.done.append(job.label)
        if job.kind == "infer":
            return
        evaluation = job.folder.evaluation(job.spec.scoring_hash)
        if job.label in self.deaths:
            with Journal(job.journal) as journal:
                journal.append("status", {"status": "RUNNING", "message": ""})
            raise self.deaths[job.label]
        with journaled(job.journal, job.spec):
            if job.label in self.errors:
                raise self.errors[job.label]
            metrics = {"val/AP": 0.1, "val/AP50": job.spec.scoring.alpha / 2}
            with Journal(job.journal) as journal:
                journal.append("metrics", {"step": 2, "values": metrics})
            write_json(evaluation.metrics, metrics, indent=2)
            if job.kind == "train":
                job.folder.checkpoint(2).mkdir()


@pytest.fixture
def work() -> Work:
    """Work that takes no time."""
    return Work()
