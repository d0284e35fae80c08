"""Work of a sweep: train a run, store a finished run's outputs, score them under one scoring.

A job takes everything from the run's folder and leaves everything there; the files and the journal tell whether it went
well, so that a job can be done in any process and done again. Imports neither ray nor mlflow.
"""

import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from detector.checkpoint import recorded_metadata
from detector.data.cache import load_dataset
from detector.errors import CandidateStoreError, InputError
from detector.files import write_json
from detector.models.detector import ScoringRow
from runyard.locks import held
from runyard.reports.run_plots import make_reports
from runyard.runs.attempts import record_attempt
from runyard.runs.finished import final_checkpoint
from runyard.runs.folder import RunFolder
from runyard.runs.prepare import ACTIVITY
from runyard.scoring.inference import store_identity
from runyard.scoring.rescore import score_one
from runyard.spec import ExperimentSpec, to_dict
from runyard.tracking.journal import Journal, last_status
from runyard.tracking.outcome import close_journal, journaled
from runyard.training.launch import Launcher, launch, launch_inference

JobKind = Literal["train", "infer", "score"]


@dataclass(frozen=True)
class Job:
    """A unit of work that runs by itself; jobs of one stage can run at the same time."""

    id: str
    """The trial's; an inference job has its own."""
    label: str
    kind: JobKind
    """'train': train, store the outputs for `rows`, evaluate; 'infer': store outputs only; 'score': from the store."""
    spec: ExperimentSpec
    """With absolute paths and the run's name in it."""
    folder: RunFolder
    rows: tuple[ScoringRow, ...] = ()
    after: str | None = None
    """Id of the job that has to have gone well."""
    start: Mapping[str, Any] = field(default_factory=dict)
    """What the driver says of itself, for the run's attempts."""

    @property
    def journal(self) -> Path:
        """Journal in which this job says how it goes."""
        if self.kind == "score":
            return self.folder.evaluation(self.spec.scoring_hash).journal
        return self.folder.journal


def perform(job: Job, launcher: Launcher) -> None:
    """Do a job, or see that it is done; raises the error that made it fail.

    A run that another process works on is waited for.
    """
    if job.kind == "score":
        _score(job)
        return
    with held(job.folder.lock, ACTIVITY, wait_s=None):
        if job.kind == "infer":
            launch_inference(job.spec, job.folder, launcher, job.rows)
        elif not job.folder.evaluation(job.spec.scoring_hash).metrics.exists():
            record_attempt(job.folder, job.spec, launcher, job.start)
            with journaled(job.journal, job.spec, (job.folder.spec, job.folder.manifest)) as artifacts:
                launch(job.spec, job.folder, launcher, job.rows)
                artifacts += make_reports(job.spec, job.folder)


def complete_record(spec: ExperimentSpec, folder: RunFolder, journal: Path) -> None:
    """Do what is missing of an evaluation whose process died after the metrics were written: reports and status.

    Args:
        journal: the run's for the evaluation that ends its training, else the evaluation's own.
    """
    if last_status(journal) == "FINISHED":
        return
    with held(folder.lock, ACTIVITY, wait_s=None):
        if last_status(journal) == "FINISHED":
            return  # another process was faster
        artifacts = [(folder.evaluation(spec.scoring_hash).metrics, "evaluation")]
        if journal == folder.journal:
            with suppress(InputError):  # its outputs are gone: the metrics are kept all the same
                artifacts = make_reports(spec, folder)
        close_journal(journal, "FINISHED", artifacts=artifacts)


def _score(job: Job) -> None:
    evaluation = job.folder.evaluation(job.spec.scoring_hash)
    if evaluation.metrics.exists():
        return
    with held(evaluation.lock, "scoring this evaluation", wait_s=None):
        if evaluation.metrics.exists():
            return  # another process was faster
        if not evaluation.spec.exists():
            write_json(evaluation.spec, to_dict(job.spec), indent=2)
        with journaled(job.journal, job.spec) as artifacts:
            metrics, step = _scored(job)
            with Journal(job.journal) as journal:
                journal.append("metrics", {"step": step, "values": {k: v for k, v in metrics.items() if v is not None}})
            artifacts.append((evaluation.metrics, "evaluation"))


def _scored(job: Job) -> tuple[dict[str, Any], int]:
    """Metrics from the run's store, and the step of its weights."""
    checkpoint = final_checkpoint(job.folder)
    # The recorded checksum tells that the outputs are of these weights; reading hundreds of megabytes would not be less
    # sure, and every row would do it anew.
    step = int(recorded_metadata(checkpoint)["step"])
    dataset_path = job.folder.val_data(job.spec.validation_hash)
    store = job.folder.candidates(job.spec.validation_hash)
    try:
        metrics = score_one(
            store,
            dataset_path,
            job.spec.scoring,
            job.folder.evaluation(job.spec.scoring_hash).root,
            protocol=job.spec.protocol,
            expect=store_identity(job.spec, checkpoint, load_dataset(dataset_path)),
        )
    except CandidateStoreError:
        shutil.rmtree(store, ignore_errors=True)  # damaged within: the next attempt then writes it anew
        raise
    return metrics, step
