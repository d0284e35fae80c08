"""A store of each test's own, and jobs that are done in milliseconds."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from runyard.runs.attempt import journaled

from detector.config import ScoringConfig
from detector.files import write_json
from runyard.driver import sweep
from runyard.driver.jobs import Job
from runyard.spec import ExperimentSpec
from runyard.tracking.journal import Journal


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
    return {"baseline": baseline} | {
        name: replace(spec, recipe="tiny-iou", scoring=ScoringConfig(confidence=confidence, alpha=alpha))
        for name, confidence, alpha in (
            ("none", "none", 0.5), ("1.0", "alpha", 1.0), ("0.7", "alpha", 0.7),
            ("0.5", "alpha", 0.5), ("0.3", "alpha", 0.3),
        )
    }  # fmt: skip


@dataclass
class Work:
    """What stands in for training and scoring."""

    done: list[str] = field(default_factory=list)
    """Labels of the jobs that were done, in order."""
    errors: dict[str, BaseException] = field(default_factory=dict)
    """By label: raised in the middle of the job."""
    deaths: dict[str, BaseException] = field(default_factory=dict)
    """By label: the job ends without another word in its journal."""

    def perform(self, job: Job, launcher: str, write: object) -> None:
        """Leaves what the real one leaves: a journal and metrics."""
        self.done.append(job.label)
        if job.kind == "candidates":
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
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    """Replaces the real work."""
    stand_in = Work()
    monkeypatch.setattr(sweep, "perform", stand_in.perform)
    return stand_in
