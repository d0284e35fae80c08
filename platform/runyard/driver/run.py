"""A sweep from its trials to its results, as the driver sees it: plan, run, track, report. One run is a sweep of one.

Trials run wherever the runner puts them and leave everything in their run folders. A second driver of the same sweep is
refused before anything is touched. Imports no mlflow, and ray only where a cluster is needed.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from rich.console import Console

from detector.data.epoch_plan import trainable_images
from detector.errors import ConfigError
from runyard.driver.jobs import Job, complete_record, perform
from runyard.driver.plan import Plan, make_plan, run_of
from runyard.driver.progress import RunProgress, SweepProgress
from runyard.driver.runners import InThisProcess, Perform, Runner
from runyard.driver.smoke import with_smoke_data
from runyard.driver.tracked import SweepTracking
from runyard.failures import Failure, SweepError, TrainingError
from runyard.grid import Trial, labels, merge
from runyard.locks import held
from runyard.paper import PaperTable
from runyard.reports.report import Report, report
from runyard.runs.data import OpenedData, dataset_name
from runyard.runs.finished import is_trained
from runyard.runs.folder import SweepFolder
from runyard.runs.prepare import begun_spec, locate, skipped_text
from runyard.runs.storage import check_storage, open_storage, storage_folder
from runyard.runs.weights import with_weights_digest
from runyard.scoring.results import SweepResult, TrialResult, load_sweep, merge_results, read_result, write_trials
from runyard.spec import ExperimentSpec
from runyard.tracking.journal import RunStatus, last_status
from runyard.tracking.stores import check_store, resolve_tracking_uri
from runyard.training.launch import Launcher, check_launcher

Finish = Callable[[SweepResult], Report]
"""Called with the results; returns what the sweep's run keeps."""


def run_sweep(
    trials: Sequence[Trial],
    name: str,
    *,
    launcher: Launcher = "ray",
    trains: bool = True,
    runtime_env: dict[str, Any] | None = None,
    max_concurrent: int | None = None,
    paper: Sequence[PaperTable] = (),
    finish: Finish | None = None,
    console: Console | None = None,
    do: Perform = perform,
) -> SweepResult:
    """Run what is left to do of a sweep: finished trials stay, interrupted ones go on, failed ones are tried again.

    Smoke runs whose specs name no data get a few generated images.

    Args:
        name: name of the sweep; with the data set's name and the storage folder it is its identity. The trials are not:
            a grid may grow, and go on in part; all results that it ever had stay in its tables.
        trains: False where the trials score finished runs.
        runtime_env: environment of Ray's workers, from `experiments/_bootstrap.py`.
        max_concurrent: trainings at once; None: as many as the cluster can hold.
        paper: tables that the rows reproduce.
        finish: called when all trials have ended, whether well or not; None: `report`.
        do: does a job; the process of a test may do less.

    Raises InputError for what the user has to mend, before anything is started; SweepError, naming trials and errors,
    when all that could be done is done.
    """
    console = console or Console()
    smoke = any(trial.spec.smoke for trial in trials)
    if smoke and trials[0].spec.source.data is None:
        trials = [replace(trial, spec=with_smoke_data(trial.spec)) for trial in trials]
    trials = list({trial.id: trial for trial in trials}.values())  # the generated set has one selection of images
    first = trials[0].spec
    storage = storage_folder(first)
    check_storage(storage)
    uri = resolve_tracking_uri(first.runtime.tracking_uri, storage)
    answers = check_store(uri)
    if launcher == "local":
        _check_machine(trials)
    dataset = dataset_name(first)
    folder = SweepFolder.in_storage(storage, f"{name}-{dataset}")
    data = OpenedData()
    checked = make_plan(trials, data, trains=trains, write=False)
    open_storage(storage)
    with held(folder.lock, "running this sweep"):
        earlier = load_sweep(folder.root).results if folder.trials.exists() else ()
        _check_same_data(_Sweep(folder, dataset, smoke, tuple(paper), checked, earlier).results(), checked)
        plan = make_plan(trials, data, trains=trains)
        sweep = _Sweep(folder, dataset, smoke, tuple(paper), plan, earlier)
        before = sweep.results()
        _check_same_data(before, plan)
        _announce(before, plan, data, console)
        writes = bool(plan.jobs) or len(earlier) < len(before.results) or last_status(folder.journal) != "FINISHED"
        if writes:
            write_trials(before)
        runners = _Runners(launcher, runtime_env or {}, max_concurrent, folder, do, console)
        if plan.jobs:
            runners.connect()
            runners.check(plan.jobs)
        for trial in plan.trials:
            if run_of(trial).evaluation(trial.spec.scoring_hash).metrics.exists():
                complete_record(trial.spec, run_of(trial), plan.journal_of(trial))
        tracking = SweepTracking(folder, plan, before.labels, uri, answers=answers, writes=writes)
        status: RunStatus = "FAILED"
        message = ""
        found = Report()
        result = before
        try:
            try:
                failures = _run_stages(plan, runners, console)
            except KeyboardInterrupt:
                runners.stop()
                raise
            result = sweep.results(failures)
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
            message = Failure.from_error(error).error
            raise
        finally:
            failed = {r.id: r.failure.error for r in result.results if r.failure is not None}
            experiment_id = tracking.close(
                status,
                message,
                found,
                failed,
                say=functools.partial(console.print, highlight=False, markup=False, soft_wrap=True),
            )
    return replace(result, experiment_id=experiment_id)


def run_one(spec: ExperimentSpec, name: str | None = None, **options: Any) -> TrialResult:
    """Run one experiment as a sweep of one; arguments and errors as `run_sweep`.

    Args:
        name: name of the sweep; None: the run's name or its recipe.
    """
    if spec.smoke and spec.source.data is None:
        spec = with_smoke_data(spec)
    trial = Trial(with_weights_digest(spec), spec.paper.row or spec.recipe)
    try:
        result = run_sweep([trial], name or spec.runtime.name or spec.recipe, **options)
    except SweepError as error:
        raise _cause_of(error) from error
    return next(r for r in result.results if r.id == trial.id)


class _Sweep:
    """Source of a sweep's results."""

    def __init__(
        self,
        folder: SweepFolder,
        dataset: str,
        smoke: bool,
        paper: tuple[PaperTable, ...],
        plan: Plan,
        earlier: Sequence[TrialResult],
    ) -> None:
        self._fixed = (folder.root.name, dataset, folder)
        self._smoke, self._paper, self._plan, self._earlier = smoke, paper, plan, tuple(earlier)

    def results(self, failures: Mapping[str, Failure] | None = None) -> SweepResult:
        """All trials that the sweep ever had; with what failed, once the jobs have been done."""
        now = [self._result(trial, failures) for trial in self._plan.trials]
        trials = merge([result.trial for result in self._earlier], self._plan.trials)
        return SweepResult(*self._fixed, merge_results(trials, [*self._earlier, *now]), self._smoke, self._paper)

    def _result(self, trial: Trial, failures: Mapping[str, Failure] | None) -> TrialResult:
        result = read_result(trial, run_of(trial))
        if failures is None:
            return result
        failure = next((failures[job] for job in self._plan.needs[trial.id] if job in failures), None)
        if result.metrics is None and failure is None:
            failure = Failure("it ended without metrics")
        return replace(result, failure=failure)


class _Runners:
    """The runner of each stage: Ray Tune where trainings run side by side, else this process."""

    def __init__(
        self,
        launcher: Launcher,
        runtime_env: dict[str, Any],
        max_concurrent: int | None,
        folder: SweepFolder,
        do: Perform,
        console: Console,
    ) -> None:
        self._launcher, self._runtime_env, self._max_concurrent = launcher, runtime_env, max_concurrent
        self._folder, self._do, self._console = folder, do, console
        self._running: Runner | None = None

    def connect(self) -> None:
        """Connect to a Ray cluster, or start one, where the launcher needs it."""
        if self._launcher != "ray":
            return
        # Before the tracking thread imports MLflow: both import pandas and pyarrow, and two threads that import a
        # package at once can meet half of it.
        from runyard.training import ray_cluster, ray_train  # noqa: F401

        if not ray_cluster.is_connected():
            self._console.print("  starting Ray", style="dim")
            ray_cluster.connect(self._runtime_env)

    def check(self, jobs: Sequence[Job]) -> None:
        """ConfigError where the launcher cannot hold the workers of a training or an inference."""
        for job in jobs:
            if job.kind != "score":
                check_launcher(job.spec, self._launcher)

    def of_stage(self, jobs: Sequence[Job]) -> Runner:
        """Runner of the jobs of one stage."""
        if self._launcher == "local" or len(jobs) == 1:
            self._running = InThisProcess(self._launcher, self._do)
        else:
            from runyard.driver.ray_tune import RayTuneRunner

            self._running = RayTuneRunner(
                self._folder.tune, self.connect, do=self._do, max_concurrent=self._max_concurrent
            )
        return self._running

    def stop(self) -> None:
        """End what is running, after an interruption."""
        if self._running is not None:
            self._running.stop()


def _run_stages(plan: Plan, runners: _Runners, console: Console) -> dict[str, Failure]:
    """Do all that is left to do; returns what failed, by the jobs' ids."""
    failures: dict[str, Failure] = {}
    if not plan.jobs:
        return failures
    alone = len(plan.jobs) == 1 and plan.jobs[0].kind == "train"
    with RunProgress(plan.jobs[0], console) if alone else SweepProgress(plan.jobs, console) as progress:
        for stage in plan.stages:
            ready = [job for job in stage if job.after is None or job.after not in failures]
            failures |= {j.id: failures[j.after] for j in stage if j.after is not None and j.after in failures}
            if ready:
                failures |= runners.of_stage(ready).run(ready, progress.on_state)
    return failures


def _check_machine(trials: Sequence[Trial]) -> None:
    """ConfigError where this machine cannot run the workers of an unfinished training; before any data is opened."""
    for trial in trials:
        spec, folder = locate(trial.spec)
        begun = begun_spec(folder, spec)
        if begun is None or not is_trained(folder, begun):
            check_launcher(spec, "local")


def _announce(sweep: SweepResult, plan: Plan, data: OpenedData, console: Console) -> None:
    left = sum(bool(plan.needs[trial.id]) for trial in plan.trials)
    to_do = f"{left} to do" if left else "finished before; nothing to do"
    trials = "1 trial" if len(plan.trials) == 1 else f"{len(plan.trials)} trials"
    console.print(f"[bold]{sweep.name}[/bold]: {trials}, {to_do}", highlight=False)
    console.print(f"  folder   {sweep.folder.root}", highlight=False, markup=False, soft_wrap=True)
    names = labels(plan.trials)
    for folder in dict.fromkeys(run_of(trial) for trial in plan.trials):
        trial = next(trial for trial in plan.trials if run_of(trial) == folder)
        if len(plan.trials) == 1:
            console.print(f"  run      {folder.root}", highlight=False, markup=False, soft_wrap=True)
        if skipped := skipped_text(folder, trial.spec):
            text = f"  {names[trial.id]}: left out as unusable, listed in {folder.manifest.name}: {skipped}"
            console.print(text, style="yellow", highlight=False, soft_wrap=True, markup=False)
    for job in plan.jobs:
        for remark in _warmup_remarks(job.spec, data) if job.kind == "train" else ():
            text = f"  {job.label}: {remark}"
            console.print(text, style="yellow", highlight=False, soft_wrap=True, markup=False)


def _warmup_remarks(spec: ExperimentSpec, data: OpenedData) -> list[str]:
    """Sentences on a warm-up that does not end before the training does, and on one that begins high."""
    train, _ = data.splits(spec)
    optim, remarks = spec.optim, []
    steps = optim.epochs * -(-len(trainable_images(train, spec.data)) // optim.batch_size)
    if optim.warmup_steps > steps:
        remarks.append(
            f"the warm-up of {optim.warmup_steps} steps is longer than the training of {steps} steps, so the learning "
            "rate never reaches its full value; --optim.warmup-steps shortens it"
        )
    first = optim.scaled_learning_rate * optim.warmup_ratio
    if optim.warmup_steps and first > optim.learning_rate:
        remarks.append(
            f"the learning rate of the first step is {first:.3g}, with {optim.batch_size} images a step; one of "
            f"{optim.reference_batch_size} images ends its warm-up at {optim.learning_rate:g}, so the first steps may "
            f"diverge; --optim.warmup-ratio {optim.reference_batch_size / optim.batch_size / 3:.2g} begins as low as "
            "it does"
        )
    return remarks


def _check_same_data(sweep: SweepResult, plan: Plan) -> None:
    """ConfigError where trials with one selection of images have different ones: the data set has changed."""
    known: dict[object, tuple[str, str]] = {}
    for result in sweep.results:
        data = result.spec.data
        selections = (
            ("training", data.train_split, data.train_limit, data.min_image_side_px, data.classes),
            ("validation", data.val_split, data.val_limit, data.classes),
        )
        opened = plan.fingerprints.get(result.id, ("", ""))
        for selection, kept, found in zip(selections, result.data_fingerprints, opened, strict=True):
            if not (kept or found):
                continue
            label, first = known.setdefault(selection, (sweep.labels[result.id], kept or found))
            if first != (kept or found):
                raise ConfigError(
                    f"{sweep.labels[result.id]!r} and {label!r} have different {selection[0]} images",
                    file=sweep.folder.root,
                    remedy="Use another --name or --storage, or restore the data",
                )


def _cause_of(error: SweepError) -> Exception:
    """The error of a sweep of one in its own words."""
    (failure,) = error.failures.values()
    plain = TrainingError(failure.error)
    for note in getattr(error, "__notes__", ()):
        plain.add_note(note)
    return plain
