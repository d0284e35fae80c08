"""What a trial does, in whatever process: train a run and keep its candidates, or score them under one scoring.

A job takes everything from the run's folder and leaves everything there; whether it went well is told by the files and
by the journal, so that a job can be done anywhere and done again. Imports neither ray nor mlflow.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from detector.checkpoint import recorded_metadata
from detector.data.cache import load_dataset
from detector.errors import CandidateStoreError
from detector.models.detector import ScoringRow
from runyard.runs.attempt import Launcher, journaled, launch, make_reports, only_process
from runyard.runs.finished import final_checkpoint
from runyard.runs.folder import RunFolder
from runyard.scoring.inference import store_identity
from runyard.scoring.rescore import score_one
from runyard.spec import ExperimentSpec
from runyard.tracking.journal import Journal

WriteCandidates = Callable[[ExperimentSpec, RunFolder, Sequence[ScoringRow]], None]
"""Runs `scoring.inference.keep_candidates` on the workers that a spec asks for."""


@dataclass(frozen=True)
class Job:
    """A unit of work that runs by itself; jobs of one stage can run at the same time."""

    id: str
    """The trial's; of a job that only writes candidates its own."""
    label: str
    kind: Literal["train", "candidates", "score"]
    """'train': train and evaluate, then keep the candidates for `rows`, if any; 'candidates': only the latter."""
    spec: ExperimentSpec
    folder: RunFolder
    rows: tuple[ScoringRow, ...] = ()
    after: str | None = None
    """The job that has to have gone well."""

    @property
    def journal(self) -> Path:
        """Where this job says how it goes."""
        if self.kind == "score":
            return self.folder.evaluation(self.spec.scoring_hash).as_run.journal
        return self.folder.journal


def perform(job: Job, launcher: Launcher, write: WriteCandidates) -> None:
    """Does a job, or sees that it is done; raises what made it fail."""
    if job.kind == "score":
        _score(job)
        return
    with only_process(job.folder.root, "experiment", wait=True):
        if job.kind == "train" and not job.folder.evaluation(job.spec.scoring_hash).metrics.exists():
            with journaled(job.journal, job.spec, (job.folder.spec, job.folder.manifest)) as artifacts:
                launch(job.spec, job.folder, launcher)
                artifacts += make_reports(job.spec, job.folder)
        if job.rows:
            write(job.spec, job.folder, job.rows)


def record_evaluation(journal: Path, spec: ExperimentSpec, step: int, metrics: dict[str, Any]) -> None:
    """The journal of a scoring whose metrics exist already."""
    with journaled(journal, spec):
        _append(journal, step, metrics)


def _score(job: Job) -> None:
    evaluation = job.folder.evaluation(job.spec.scoring_hash)
    if evaluation.metrics.exists():
        return
    with journaled(job.journal, job.spec) as artifacts:
        checkpoint = final_checkpoint(job.folder)
        # The weights are not used here: that the candidates are theirs is told by the recorded checksum, which every
        # row would else compute anew from hundreds of megabytes.
        step = int(recorded_metadata(checkpoint)["step"])
        dataset_path = job.folder.val_data(job.spec.validation_hash)
        store = job.folder.candidates(job.spec.validation_hash)
        try:
            metrics = score_one(
                store,
                dataset_path,
                job.spec.scoring,
                evaluation.root,
                protocol=job.spec.protocol,
                expect=store_identity(job.spec, checkpoint, load_dataset(dataset_path)),
            )
        except CandidateStoreError:
            shutil.rmtree(store, ignore_errors=True)  # damaged within: the next attempt then writes it anew
            raise
        _append(job.journal, step, metrics)
        artifacts.append((evaluation.metrics, "evaluation"))


def _append(journal: Path, step: int, metrics: dict[str, Any]) -> None:
    with Journal(journal) as writer:
        writer.append("metrics", {"step": step, "values": {k: v for k, v in metrics.items() if v is not None}})
