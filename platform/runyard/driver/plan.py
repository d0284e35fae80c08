"""Plan of a sweep: its trials meet the run folders, and what is left to do becomes jobs.

Only what the runs leave behind is asked: a trial is finished when the metrics of its evaluation lie in the folder of
its training, whichever command put them there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from detector.config import ScoringConfig
from detector.errors import ConfigError, InputError
from detector.models.detector import ScoringRow
from detector.rescoring.store import CandidateStore
from runyard.driver.jobs import Job
from runyard.grid import Trial, by_training, labels
from runyard.runs.attempts import describe_start
from runyard.runs.data import OpenedData
from runyard.runs.finished import final_checkpoint, is_trained
from runyard.runs.folder import RunFolder
from runyard.runs.prepare import begun_spec, locate, prepare, prepare_evaluation
from runyard.spec import ExperimentSpec


@dataclass(frozen=True)
class Plan:
    """Trials with their places, and the jobs that are left, by stage."""

    trials: tuple[Trial, ...]
    """In the order of the command; their specs have absolute paths and the run's name in them."""
    stages: tuple[tuple[Job, ...], ...]
    """Trainings, inferences of finished runs, scorings; each stage starts when the one before has ended."""
    own: frozenset[str]
    """Ids of the trials whose evaluation ends their training: one for each run at most."""

    needs: Mapping[str, tuple[str, ...]]
    """Ids of the jobs that a trial waits for, in their order, by trial id; empty for a finished trial."""
    fingerprints: Mapping[str, tuple[str, str]]
    """Fingerprints of the training and of the evaluated images, by trial id, where they were opened for a training."""

    @property
    def jobs(self) -> tuple[Job, ...]:
        """All that is left to do."""
        return tuple(job for stage in self.stages for job in stage)

    def journal_of(self, trial: Trial) -> Path:
        """Journal that the trial's tracked run repeats: its training's, or that of an evaluation of its own."""
        folder = run_of(trial)
        return folder.journal if trial.id in self.own else folder.evaluation(trial.spec.scoring_hash).journal


def run_of(trial: Trial) -> RunFolder:
    """Folder of a located trial's run."""
    runtime = trial.spec.runtime
    assert runtime.storage is not None
    assert runtime.name is not None, "the trial has no place yet"
    return RunFolder(runtime.storage / runtime.name)


def make_plan(trials: Sequence[Trial], data: OpenedData, *, trains: bool = True, write: bool = True) -> Plan:
    """Begin or compare the runs, check all that a user can get wrong, and list what is left to do.

    Training images are opened for unfinished trainings only, validation images where they are still to be evaluated.

    Args:
        trains: False where the trials score finished runs; an unfinished one is then a ConfigError.
        write: False only checks, and touches no folder.

    Raises InputError as `locate` and `prepare` do, before anything was started. All specifications are looked at before
    any folder is touched.
    """
    placed = [replace(trial, spec=locate(trial.spec)[0]) for trial in trials]
    begun = {run_of(trial): begun_spec(run_of(trial), trial.spec) for trial in placed}
    start = describe_start()
    names = labels(placed)
    found: list[list[Job]] = [[], [], []]
    needs: dict[str, tuple[str, ...]] = {trial.id: () for trial in placed}
    own: set[str] = set()
    fingerprints: dict[str, tuple[str, str]] = {}
    for group in by_training(placed):
        planned = _Training(group, begun[run_of(group[0])], names, start)
        fingerprints |= planned.open_data(data, trains=trains, write=write)
        own |= {trial.id for trial in group if trial.spec.scoring_hash == planned.own.scoring_hash}
        for stage, jobs in zip(found, planned.jobs(needs), strict=True):
            stage += jobs
    return Plan(tuple(placed), tuple(tuple(stage) for stage in found), frozenset(own), needs, fingerprints)


class _Training:
    """One training of the plan with the trials that share its weights."""

    def __init__(
        self, group: Sequence[Trial], begun: ExperimentSpec | None, names: dict[str, str], start: dict[str, Any]
    ) -> None:
        first = group[0].spec
        self.group, self.folder, self.names, self.start = group, run_of(group[0]), names, start
        # The evaluation that a training ends with is the one it was begun with, whatever is asked for later.
        self.own = first
        if begun is not None:
            self.own = replace(first, scoring=begun.scoring, protocol=begun.protocol, data=begun.data)
        self.trained = begun is not None and is_trained(self.folder, begun)
        self.left = [t for t in group if not self.folder.evaluation(t.spec.scoring_hash).metrics.exists()]

    def open_data(self, data: OpenedData, *, trains: bool, write: bool) -> dict[str, tuple[str, str]]:
        """Open what is left to be read; returns the fingerprints of a training's images by trial id.

        Raises CheckpointError where a finished run is still to be scored and its checkpoints were removed.
        """
        found = {}
        if self.trained and self.left:
            final_checkpoint(self.folder)
        if not self.trained:
            if not trains:
                remedy = "Run its command again first"
                raise ConfigError("its training is not finished", file=self.folder.root, remedy=remedy)
            train, val = prepare(self.own, data, write=write).fingerprints
            same = {t.id for t in self.group if t.spec.validation_hash == self.own.validation_hash}
            found = {trial.id: (train, val if trial.id in same else "") for trial in self.group}
        for selection in self._selections():
            spec = selection[0].spec
            if self.trained or (write and spec.validation_hash != self.own.validation_hash):
                prepare_evaluation(spec, data, write=write)
        return found

    def jobs(self, needs: dict[str, tuple[str, ...]]) -> tuple[list[Job], list[Job], list[Job]]:
        """Jobs of the three stages; `needs` is filled in for the trials that wait for them."""
        train = [] if self.trained else [self._training()]
        infer, score = [], []
        for selection in self._selections():
            scored = [t for t in selection if self.trained or t.spec.scoring_hash != self.own.scoring_hash]
            waits_for = [job.id for job in train]
            for trial in selection:
                needs[trial.id] = tuple(waits_for)
            if not scored:
                continue
            spec = scored[0].spec
            stored_by_training = bool(train) and spec.validation_hash == self.own.validation_hash
            rows = _rows([t.spec for t in scored])
            if not stored_by_training and not self._store_holds(spec, rows):
                name = f"outputs of {self.folder.root.name}"
                after = waits_for[-1] if waits_for else None
                infer.append(Job(f"{scored[0].id}-outputs", name, "infer", spec, self.folder, rows, after=after))
                waits_for.append(infer[-1].id)
            after = waits_for[-1] if waits_for else None
            score += [Job(t.id, self.names[t.id], "score", t.spec, self.folder, after=after) for t in scored]
            for trial in scored:
                needs[trial.id] = (*waits_for, trial.id)
        return train, infer, score

    def _training(self) -> Job:
        mine = next((t for t in self.group if t.spec.scoring_hash == self.own.scoring_hash), None)
        same_images = [t.spec for t in self.left if t.spec.validation_hash == self.own.validation_hash]
        alone = mine is not None and len(same_images) == 1
        return Job(
            id=mine.id if mine else f"{self.group[0].id}-training",
            label=self.names[mine.id] if mine else f"training of {self.folder.root.name}",
            kind="train",
            spec=self.own,
            folder=self.folder,
            rows=() if alone else _rows([self.own, *same_images]),
            start=self.start,
        )

    def _selections(self) -> list[list[Trial]]:
        """The trials that are left, by the images that they are evaluated on."""
        selections: dict[str, list[Trial]] = {}
        for trial in self.left:
            selections.setdefault(trial.spec.validation_hash, []).append(trial)
        return list(selections.values())

    def _store_holds(self, spec: ExperimentSpec, rows: Sequence[ScoringRow]) -> bool:
        try:
            store = CandidateStore.open(self.folder.candidates(spec.validation_hash))
        except InputError:
            return False
        return not store.missing(rows)


def _rows(specs: Sequence[ExperimentSpec]) -> tuple[ScoringRow, ...]:
    """Scorings that a store has to answer, and how good a perfect IoU head would be."""
    rows = [ScoringRow(spec.scoring) for spec in specs]
    if specs[0].model.iou_head:
        oracle = replace(specs[0].scoring, confidence="alpha", alpha=ScoringConfig().alpha)
        rows.append(ScoringRow(oracle, oracle=True))
    return tuple(dict.fromkeys(rows))
