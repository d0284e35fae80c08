"""A sweep from its trials to its results, as the driver sees it: plan, run, track, report, and tell the truth.

Trials run wherever the runner puts them and leave everything in their run folders. A second driver of the same sweep is
refused.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from rich.console import Console

from detector.errors import ConfigError
from runyard.driver.errors import Failure, SweepError
from runyard.driver.experiment import with_smoke_data
from runyard.driver.jobs import Job, perform
from runyard.driver.plan import Cell, OpenedData, Plan, make_plan
from runyard.driver.sweep_progress import SweepProgress
from runyard.driver.tracked import SweepTracking
from runyard.grid import Trial
from runyard.identity import differences
from runyard.paper import PaperTable
from runyard.reports.report import Report, report
from runyard.runs.attempt import Launcher, only_process
from runyard.runs.folder import RunFolder, SweepFolder
from runyard.runs.manifest import without_secrets
from runyard.runs.prepare import dataset_name, storage_folder
from runyard.scoring.inference import keep_candidates
from runyard.scoring.results import SweepResult, TrialResult, load_sweep, read_metrics, together, write_trials
from runyard.spec import ExperimentSpec
from runyard.tracking.journal import RunStatus
from runyard.tracking.stores import resolve_tracking_uri

OnState = Callable[[Job, str, str], None]
"""Told of a job, its state ('running', 'finished', 'failed') and, of a failed one, its error."""

Finish = Callable[[SweepResult], Report]
"""Is told the results, and returns what the sweep's run keeps."""


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
    paper: Sequence[PaperTable] = (),
    finish: Finish | None = None,
    console: Console | None = None,
) -> SweepResult:
    """Runs what is left to do of a sweep: finished trials stay, interrupted ones go on, failed ones are tried again.

    Args:
        name: of the sweep; with the data set's name and the storage folder it is its identity, the trials are not: a
            grid may grow, and go on in part; what it ever held stays in its tables. But none of its labels may come to
            mean another training.
        smoke: generate a few images where the specs name no data.
        runtime_env: for Ray's workers, from `experiments/_bootstrap.py`.
        max_concurrent: trainings at once; None: as many as the cluster can hold.
        paper: the tables that the rows reproduce.
        finish: called when all trials have ended, whether well or not; None: `report`.

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
        earlier = load_sweep(folder.root).results if folder.trials.exists() else ()
        _check_identity(folder, trials, earlier)
        plan = make_plan(trials, data)
        cells = together(earlier, [_result(cell, None) for cell in plan.cells])
        result = SweepResult(folder.root.name, dataset, folder, cells, smoke, tuple(paper))
        left = sum(bool(cell.jobs) for cell in plan.cells)
        console.print(f"[bold]{result.name}[/bold]: {len(trials)} trials, {left} to do", highlight=False)
        console.print(f"  folder   {folder.root}", highlight=False, soft_wrap=True)
        write_trials(result)
        tracking = SweepTracking(folder, plan.cells, first.runtime.experiment, uri)
        status: RunStatus = "FAILED"
        message = ""
        found = Report()
        try:
            runner = _runner(launcher, plan, folder, runtime_env or {}, max_concurrent)
            try:
                failures = _run_jobs(plan, runner, console)
            except KeyboardInterrupt:
                runner.stop()
                raise
            result = replace(result, results=together(cells, [_result(cell, failures) for cell in plan.cells]))
            try:
                found = finish(result) if finish else report(result, console)
            except Exception as error:
                if result.failures:  # they matter more
                    raise SweepError(len(trials), result.failures) from error
                raise
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
            failed = {r.id: r.failure.error for r in result.results if r.failure is not None}
            unsent = tracking.close(status, message, found, failed)
            if unsent:
                console.print(f"  {unsent} records did not reach {without_secrets(uri)}; the same command sends them")
    return result


def _check_identity(folder: SweepFolder, trials: Sequence[Trial], earlier: Sequence[TrialResult]) -> None:
    """ConfigError, field by field, where the sweep has had other trainings under the same labels."""
    known = {result.label: result.spec for result in earlier}
    changes: dict[str, list[str]] = {}
    for trial in trials:
        if trial.label in known:
            for change in differences(known[trial.label], trial.spec):
                changes.setdefault(change, []).append(trial.label)
    if changes:
        told = "; ".join(f"{change} ({', '.join(labels)})" for change, labels in changes.items())
        raise ConfigError(f"holds another sweep: {told}", file=folder.root, remedy="Use another --name")


def _run_jobs(plan: Plan, runner: Runner, console: Console) -> dict[str, Failure]:
    """Does all that is left to do; what failed, by the jobs' ids."""
    with SweepProgress([*plan.trainings, *plan.scorings], console) as progress:
        failures = dict(runner.run(plan.trainings, progress.on_state))
        ready = [job for job in plan.scorings if job.after not in failures]
        failures |= runner.run(ready, progress.on_state)
    return failures


def _result(cell: Cell, failures: Mapping[str, Failure] | None) -> TrialResult:
    """With what failed, once the jobs have been done; None before."""
    trial, metrics, failure = cell.trial, read_metrics(cell.evaluation), None
    if failures is not None:
        failure = next((failures[job] for job in cell.jobs if job in failures), None)
        if metrics is None and failure is None:
            failure = Failure("it ended without metrics")
    return TrialResult(
        trial.id, trial.row, trial.line, trial.label, trial.spec, cell.run.folder, cell.evaluation, metrics, failure
    )


def _runner(
    launcher: Launcher, plan: Plan, folder: SweepFolder, runtime_env: dict[str, Any], max_concurrent: int | None
) -> Runner:
    spec = plan.cells[0].run.spec
    if launcher == "local" or not (plan.trainings or plan.scorings):
        return _InThisProcess()
    from runyard.driver.ray_tune import RayTuneRunner
    from runyard.training import ray_cluster

    def connect() -> None:
        ray_cluster.connect(runtime_env)

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
