"""What of a sweep is done already and what is left to do: trials meet the run folders.

Nothing is recorded for this but what the runs leave behind: a trial is finished when the metrics of its scoring lie in
the folder of its training, whichever sweep or single run put them there.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from detector.config import ScoringConfig
from detector.data.samples import Dataset
from detector.errors import ConfigError, InputError
from detector.models.detector import ScoringRow
from detector.rescoring.header import MAX_ROWS
from runyard.driver.jobs import Job, record_evaluation
from runyard.grid import Trial, by_training
from runyard.runs.finished import final_checkpoint
from runyard.runs.folder import EvaluationFolder, RunFolder
from runyard.runs.prepare import PreparedRun, open_data, prepare, run_folder
from runyard.spec import ExperimentSpec, from_dict


@dataclass(frozen=True)
class Cell:
    """A trial with its place."""

    trial: Trial
    """Its spec has absolute paths and the run's name in it."""
    run: PreparedRun
    """The training that it shares with the trials of the same training hash."""
    journal: Path
    """Which record its MLflow run repeats: its training's for one trial of a training, else its own."""
    jobs: tuple[str, ...]
    """What is left to do for it, in this order; nothing for a finished one."""

    @property
    def evaluation(self) -> EvaluationFolder:
        return self.run.folder.evaluation(self.trial.spec.scoring_hash)


@dataclass(frozen=True)
class Plan:
    """All cells in the order of the trials, and the jobs that are left, those of `scorings` after `trainings`."""

    cells: tuple[Cell, ...]
    trainings: tuple[Job, ...]
    scorings: tuple[Job, ...]


class OpenedData:
    """Data sets, opened once each for all trials of a sweep."""

    def __init__(self) -> None:
        self._opened: dict[object, tuple[Dataset, Dataset]] = {}

    def of(self, spec: ExperimentSpec) -> tuple[Dataset, Dataset]:
        """Training and validation split; raises as `open_data` does."""
        data = spec.data
        opened = (data.train_split, data.val_split, data.classes, data.val_limit)
        looked_at = (spec.runtime.check_images, data.train_limit, data.min_image_side_px)
        key = (spec.source, opened, looked_at, data.unusable_images, data.max_skipped_fraction)
        if key not in self._opened:
            self._opened[key] = open_data(spec)
        return self._opened[key]


def make_plan(trials: Sequence[Trial], data: OpenedData) -> Plan:
    """Claims the run folders, checks all that a user can get wrong, and says what is left to do.

    Raises InputError as `prepare` does, before anything was started.
    """
    cells: dict[str, Cell] = {}
    trainings: list[Job] = []
    scorings: list[Job] = []
    for group in by_training(trials):
        planned, jobs = _plan_training(group, data)
        cells |= {cell.trial.id: cell for cell in planned}
        trainings += [job for job in jobs if job.kind != "score"]
        scorings += [job for job in jobs if job.kind == "score"]
    return Plan(tuple(cells[trial.id] for trial in trials), tuple(trainings), tuple(scorings))


def _plan_training(group: Sequence[Trial], data: OpenedData) -> tuple[list[Cell], list[Job]]:
    first = group[0].spec
    for trial in group[1:]:
        if trial.spec.data != first.data:
            raise ConfigError(
                "the same weights would be evaluated on two selections of images", field="data",
                value=f"{group[0].label} and {trial.label}", remedy="Run one sweep for each",
            )  # fmt: skip
    splits = data.of(first)
    folder = run_folder(first, splits[0])
    evaluated = _directly_evaluated(folder)
    main = _main_spec(group, folder)
    run = prepare(main, splits)
    group = [replace(t, spec=replace(t.spec, source=run.spec.source, runtime=run.spec.runtime)) for t in group]
    trained = bool(folder.evaluations() and folder.checkpoints())
    left = [trial for trial in group if not folder.evaluation(trial.spec.scoring_hash).metrics.exists()]
    to_score = [trial for trial in left if trained or trial.spec.scoring_hash != main.scoring_hash]
    jobs: list[Job] = []
    weights: Job | None = None
    if not trained or to_score:
        rows = _rows(group) if to_score else ()
        if trained:
            name = f"candidates of {folder.root.name}"
            weights = Job(f"{group[0].id}-candidates", name, "candidates", run.spec, folder, rows)
        else:
            owner = next(trial for trial in group if trial.spec.scoring_hash == main.scoring_hash)
            weights = Job(owner.id, owner.label, "train", run.spec, folder, rows)
        jobs.append(weights)
    jobs += [Job(t.id, t.label, "score", t.spec, folder, after=weights.id if weights else None) for t in to_score]
    return [_cell(trial, run, jobs, evaluated) for trial in group], jobs


def _cell(trial: Trial, run: PreparedRun, jobs: Sequence[Job], evaluated: Sequence[EvaluationFolder]) -> Cell:
    """With the journal of its own for a scoring that a run's journal cannot speak for."""
    evaluation = run.folder.evaluation(trial.spec.scoring_hash)
    own = evaluation.as_run.journal
    if not evaluation.metrics.exists():
        mine = [job for job in jobs if job.id == trial.id]
        journal = mine[0].journal if mine else own
        needed = [job.id for job in jobs if job.kind != "score" or job.id == trial.id]
        return Cell(trial, run, journal, tuple(needed))
    if own.exists():
        return Cell(trial, run, own, ())
    if len(evaluated) > 1:
        # Two scorings in one journal: MLflow keeps the first value of a step, which would be the other one's.
        step = int(final_checkpoint(run.folder).name.rpartition("-")[2])
        record_evaluation(own, trial.spec, step, json.loads(evaluation.metrics.read_text()))
        return Cell(trial, run, own, ())
    return Cell(trial, run, run.folder.journal, ())


def _directly_evaluated(folder: RunFolder) -> list[EvaluationFolder]:
    """The evaluations that training itself ended with: rescored ones have a journal of their own."""
    return [evaluation for evaluation in folder.evaluations() if not evaluation.as_run.journal.exists()]


def _main_spec(group: Sequence[Trial], folder: RunFolder) -> ExperimentSpec:
    """What the training itself is evaluated under: as it was begun, else as the first trial says."""
    first = group[0].spec
    try:
        begun = from_dict(json.loads(folder.spec.read_text()))
    except (OSError, ValueError, InputError):
        return first  # there is none, or `prepare` will say what is wrong with it
    main = replace(first, scoring=begun.scoring, protocol=begun.protocol)
    known = {trial.spec.scoring_hash for trial in group}
    return main if main.scoring_hash in known or folder.evaluation(main.scoring_hash).metrics.exists() else first


def _rows(group: Sequence[Trial]) -> tuple[ScoringRow, ...]:
    """What the store must be complete for: every scoring of the group, and how good a perfect IoU head would be."""
    rows = [ScoringRow(trial.spec.scoring) for trial in group]
    if group[0].spec.model.iou_head:
        rows.append(ScoringRow(replace(group[0].spec.scoring, confidence="alpha", alpha=ScoringConfig().alpha), True))
    different = tuple(dict.fromkeys(rows))
    if len(different) > MAX_ROWS:
        raise ConfigError(
            f"{len(different)} scorings of one training are more than a candidate store can hold ({MAX_ROWS})",
            field="rows", value=group[0].label, remedy="Run two sweeps with other names",
        )  # fmt: skip
    return different
