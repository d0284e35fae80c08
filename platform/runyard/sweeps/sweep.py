"""A sweep from its trials to its results, as the driver sees it: plan, run, track, report, and tell the truth.

Trials run wherever the runner puts them and leave everything in their run folders. A second driver of the same sweep is
refused.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from rich.console import Console

from detector.data.cache import load_dataset
from detector.data.samples import Dataset
from detector.evaluation.results import DetectionTable, read_coco_results
from runyard.attempt import Artifact, Launcher, only_process
from runyard.experiment import with_smoke_data
from runyard.layout import EvaluationFolder, RunFolder, SweepFolder, atomic_write_json
from runyard.manifest import without_secrets
from runyard.reports.tables import Row, comparison_table
from runyard.spec import ExperimentSpec, to_dict
from runyard.sweeps.errors import Failure, SweepError
from runyard.sweeps.grid import Trial
from runyard.sweeps.plan import Cell, OpenedData, Plan, make_plan
from runyard.sweeps.progress import SweepProgress
from runyard.sweeps.tracking import SweepTracking
from runyard.sweeps.trials import Job, keep_candidates, perform
from runyard.tracking.journal import RunStatus
from runyard.tracking.stores import resolve_tracking_uri
from runyard.training.prepare import dataset_name, storage_folder

COLUMNS = ("AP", "AP50", "AP75", "AP90")


@dataclass(frozen=True)
class TrialResult:
    """What became of a trial."""

    trial: Trial
    """Its spec has absolute paths and the run's name in it."""
    folder: RunFolder
    """Of the training that it shares with the trials of the same training hash."""
    metrics: dict[str, float] | None
    """None where there are none."""
    failure: Failure | None
    """The first one, where something failed this time."""

    @property
    def evaluation(self) -> EvaluationFolder:
        """Detections and metrics."""
        return self.folder.evaluation(self.trial.spec.scoring_hash)

    def load_detections(self) -> tuple[Dataset, DetectionTable]:
        """The validation split and what was found in it."""
        dataset = load_dataset(self.folder.dataset("val"))
        return dataset, read_coco_results(self.evaluation.detections, dataset)


@dataclass(frozen=True)
class SweepResult:
    """All trials of a sweep, in the order of the table."""

    name: str
    dataset: str
    folder: SweepFolder
    results: tuple[TrialResult, ...]
    tracking_uri: str
    smoke: bool
    """Everything was made tiny: the numbers mean nothing."""

    @property
    def failures(self) -> dict[str, Failure]:
        """By the trials' labels."""
        return {result.trial.label: result.failure for result in self.results if result.failure is not None}


OnState = Callable[[Job, str, str], None]
"""Told of a job, its state ('running', 'finished', 'failed') and, of a failed one, its error."""

Finish = Callable[[SweepResult], Sequence[Artifact]]
"""Makes tables and plots of a sweep, below `SweepResult.folder.results`, and returns what the sweep's run keeps."""


class Runner(Protocol):
    """Does jobs of one kind, side by side or one by one; tells what made some fail, by the jobs' ids."""

    def run(self, jobs: Sequence[Job], on_state: OnState) -> Mapping[str, Failure]: ...

    def stop(self) -> None:
        """After an interruption: ends what is running, with a checkpoint where there is time for one."""


def run_sweep(
    trials: Sequence[Trial],
    name: str,
    *,
    launcher: Launcher = "ray",
    smoke: bool = False,
    runtime_env: dict[str, Any] | None = None,
    max_concurrent: int | None = None,
    finish: Finish | None = None,
    console: Console | None = None,
) -> SweepResult:
    """Runs what is left to do of a sweep: finished trials stay, interrupted ones go on, failed ones are tried again.

    Args:
        name: of the sweep; with the data set's name and the storage folder it is its identity, the trials are not: a
            grid may grow.
        smoke: generate a few images where the specs name no data.
        runtime_env: for Ray's workers, from `experiments/_bootstrap.py`.
        max_concurrent: trainings at once; None: as many as the cluster can hold.
        finish: called when all trials have ended, whether well or not.

    Raises InputError for what the user has to mend, before anything is started; SweepError, naming trials and errors,
    when all that could be done is done.
    """
    console = console or Console()
    if smoke and trials[0].spec.source.data is None:
        trials = [replace(trial, spec=with_smoke_data(trial.spec)) for trial in trials]
    first = trials[0].spec
    data = OpenedData()
    dataset = dataset_name(data.of(first)[0])
    storage = storage_folder(first)
    uri = resolve_tracking_uri(first.runtime.tracking_uri, storage)
    folder = SweepFolder.of(storage, f"{name}-{dataset}")
    with only_process(folder.root, "sweep"):
        plan = make_plan(trials, data)
        result = SweepResult(folder.root.name, dataset, folder, (), uri, smoke)
        left = sum(bool(cell.jobs) for cell in plan.cells)
        console.print(f"[bold]{result.name}[/bold]: {len(trials)} trials, {left} to do", highlight=False)
        console.print(f"  folder   {folder.root}", highlight=False, soft_wrap=True)
        _write_trials(result, plan)
        tracking = SweepTracking(folder, plan.cells, first.runtime.experiment, uri)
        status: RunStatus = "FAILED"
        message = ""
        artifacts: Sequence[Artifact] = ()
        try:
            runner = _runner(launcher, plan, folder, runtime_env or {}, max_concurrent)
            try:
                failures = _run_jobs(plan, runner, console)
            except KeyboardInterrupt:
                runner.stop()
                raise
            result = replace(result, results=tuple(_result(cell, failures) for cell in plan.cells))
            artifacts = (finish or _print_metrics)(result)
            if result.failures:
                raise SweepError(len(trials), result.failures)
            status = "FINISHED"
        except KeyboardInterrupt as error:
            status, message = "KILLED", type(error).__name__
            raise
        except Exception as error:
            message = Failure.of(error).error
            raise
        finally:
            failed = {r.trial.id: r.failure.error for r in result.results if r.failure is not None}
            unsent = tracking.close(status, message, artifacts, failed)
            if unsent:
                console.print(f"  {unsent} records did not reach {without_secrets(uri)}; the same command sends them")
    return result


def _run_jobs(plan: Plan, runner: Runner, console: Console) -> dict[str, Failure]:
    """Does all that is left to do; what failed, by the jobs' ids."""
    with SweepProgress([*plan.trainings, *plan.scorings], console) as progress:
        failures = dict(runner.run(plan.trainings, progress.on_state))
        ready = [job for job in plan.scorings if job.after not in failures]
        failures |= runner.run(ready, progress.on_state)
    return failures


def _result(cell: Cell, failures: Mapping[str, Failure]) -> TrialResult:
    metrics = json.loads(cell.evaluation.metrics.read_text()) if cell.evaluation.metrics.exists() else None
    failure = next((failures[job] for job in cell.jobs if job in failures), None)
    if metrics is None and failure is None:
        failure = Failure("it ended without metrics")
    return TrialResult(cell.trial, cell.run.folder, metrics, failure)


def _write_trials(result: SweepResult, plan: Plan) -> None:
    """For whoever reads the sweep later: which rows there are, and where their results lie."""
    rows = [
        {
            "id": cell.trial.id,
            "row": cell.trial.row,
            "label": cell.trial.label,
            "seed": cell.trial.spec.seed,
            "run": cell.run.folder.root.name,
            "evaluation": cell.evaluation.root.relative_to(cell.run.folder.root).as_posix(),
            "spec": to_dict(cell.trial.spec),
        }
        for cell in plan.cells
    ]
    content = {"sweep": result.name, "dataset": result.dataset, "smoke": result.smoke, "trials": rows}
    atomic_write_json(result.folder.trials, content)


def _print_metrics(result: SweepResult) -> list[Artifact]:
    rows = [
        Row(r.trial.label, {name: (r.metrics or {}).get(f"val/{name}") for name in COLUMNS}) for r in result.results
    ]
    Console().print(comparison_table(rows, COLUMNS, result.name))
    return []


def _runner(
    launcher: Launcher, plan: Plan, folder: SweepFolder, runtime_env: dict[str, Any], max_concurrent: int | None
) -> Runner:
    spec = plan.cells[0].run.spec
    if launcher == "local" or not (plan.trainings or plan.scorings):
        return _InThisProcess()
    from runyard.sweeps.ray_tune import RayTuneRunner
    from runyard.training import ray_train

    def connect() -> None:
        ray_train.connect(spec, runtime_env)

    return RayTuneRunner(spec, folder.tune, connect, max_concurrent=max_concurrent)


class _InThisProcess:
    """One job after the other with plain torch."""

    def run(self, jobs: Sequence[Job], on_state: OnState) -> dict[str, Failure]:
        from runyard.training.local import LocalContext

        def write(spec: ExperimentSpec, folder: RunFolder, rows: Sequence[Any]) -> None:
            keep_candidates(spec, folder, rows, LocalContext())

        failures = {}
        for job in jobs:
            on_state(job, "running", "")
            try:
                perform(job, "local", write)
                on_state(job, "finished", "")
            except Exception as error:
                failures[job.id] = Failure.of(error)
                on_state(job, "failed", failures[job.id].error)
        return failures

    def stop(self) -> None:
        """What ran has ended with the interruption."""
