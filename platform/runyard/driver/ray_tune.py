"""Jobs as Ray Tune trials: each training with its own Ray Train workers, as many at once as the cluster can hold.

Tune only schedules here. What is finished, what failed and what goes on is told by the run folders (`plan`), so that a
grid may grow, and a sweep go on on another cluster; Tune's own `restore` ignores new values and forgets resumed steps.
"""

import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.progress_reporter import TrialProgressCallback

from runyard.driver.jobs import Job, perform
from runyard.driver.runners import OnState, Perform
from runyard.failures import Failure
from runyard.spec import ExperimentSpec
from runyard.tracking.journal import last_status
from runyard.training import ray_train
from runyard.training.stopping import GRACE_S, request_stop

ENVIRONMENT = {
    # The run folders hold what is worth keeping; Tune's csv, json and event files would repeat parts of it.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # Ctrl-C is handled by the sweep's driver; Tune would take it for the end of the experiment.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # Its older output can be silenced, the newer one prints a banner all the same.
    "RAY_AIR_NEW_OUTPUT": "0",
    # Nothing of Tune's own state is read again.
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
}

TRAINING_RESOURCES = {"node:__internal_head__": 0.001}
"""Of the process that starts a training's workers. It must hold no CPU: trials that hold the CPUs their own workers
wait for never end, and even 0.001 CPU of a node would keep its last worker out. Every head node has this resource, and
the head is the node that an autoscaler leaves alone."""

SCORING_RESOURCES = {"CPU": 1}


_DIED = "the process that ran it died; lack of memory is the usual reason, Ray's logs may tell"


class RayTuneRunner:
    """Runner of jobs on a Ray cluster."""

    def __init__(
        self,
        folder: Path,
        connect: Callable[[], None],
        *,
        max_concurrent: int | None = None,
        do: Perform = perform,
    ) -> None:
        """Connect.

        Args:
            folder: for Tune's own files, which are removed afterwards.
            connect: connects this process to the cluster; called again where a trial's process has died.
            max_concurrent: trainings at once; None: as many as the cluster can hold.
            do: does a job, in a process of Tune's.
        """
        connect()
        self._folder = folder
        self._connect = connect
        self._max_concurrent = max_concurrent
        self._do = do
        self._watcher: _Watcher | None = None

    def run(self, jobs: Sequence[Job], on_state: OnState) -> dict[str, Failure]:
        """Do all jobs; return what made some fail, by the jobs' ids. One failure stops no other job.

        Ray never gives back the places of workers whose launching process was killed (its cleaner asks the dashboard,
        and gives up where several clusters run on a machine). So this process then leaves the cluster, which frees all,
        and comes back for the rest; what was running writes a checkpoint first and goes on from it.
        """
        failures: dict[str, Failure] = {}
        ended: set[str] = set()
        while left := [job for job in jobs if job.id not in ended]:
            watcher = _Watcher(left, on_state)
            try:
                self._watcher = watcher
                self._fit(left, watcher)
            except _TrialDiedError:
                ray.shutdown()
                self._connect()
            failures |= watcher.failures
            ended |= watcher.ended
        return failures

    def _fit(self, jobs: Sequence[Job], watcher: "_Watcher") -> None:
        on_workers = [job for job in jobs if job.kind != "score"]
        assert not on_workers or len(on_workers) == len(jobs), "a stage is of one kind"
        slots = self._slots(on_workers[0].spec) if on_workers else None
        os.environ.update({name: os.environ.get(name, value) for name, value in ENVIRONMENT.items()})
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # failures are told by us
        shutil.rmtree(self._folder, ignore_errors=True)
        by_id = {job.id: job for job in jobs}
        try:
            tune.Tuner(
                tune.with_resources(
                    tune.with_parameters(_trial, jobs=by_id, do=self._do),
                    TRAINING_RESOURCES if on_workers else SCORING_RESOURCES,
                ),
                param_space={"id": tune.grid_search(list(by_id))},
                tune_config=tune.TuneConfig(
                    max_concurrent_trials=slots,
                    reuse_actors=True,
                    trial_name_creator=_name,
                    trial_dirname_creator=_name,
                ),
                run_config=tune.RunConfig(
                    name="trials", storage_path=str(self._folder), verbose=0, callbacks=[watcher]
                ),
            ).fit()
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _slots(self, spec: ExperimentSpec) -> int:
        """Trainings at once; ConfigError where the cluster cannot hold one. All of a sweep ask for the same."""
        gpus = ray_train.gpus_per_worker(spec)
        ray_train.check_resources(spec, gpus)
        return min(self._max_concurrent or 1_000_000, training_slots(spec, gpus))

    def stop(self) -> None:
        """Let the running trainings write a checkpoint, for a minute at most, then leave the cluster."""
        if self._watcher is not None:
            self._watcher.stop_trainings()
        ray.shutdown()


class _TrialDiedError(RuntimeError):
    """Death of the process of a training's trial."""


def training_slots(spec: ExperimentSpec, gpus: int) -> int:
    """Number of trainings that the nodes can hold at once, at least 1; a worker needs all its resources on one node."""
    needed = {"CPU": spec.runtime.cpus_per_worker, **({"GPU": gpus} if gpus else {})}
    workers = 0
    for node in ray.nodes():
        if node["Alive"]:
            have = node["Resources"]
            workers += min(int(have.get(kind, 0) // amount) for kind, amount in needed.items())
    return max(workers // spec.runtime.workers, 1)


class _Watcher(TrialProgressCallback):
    """Callback of Tune in the driver's process, in place of Tune's own that prints."""

    def __init__(self, jobs: Sequence[Job], on_state: OnState) -> None:
        super().__init__()
        self.failures: dict[str, Failure] = {}
        self.ended: set[str] = set()
        self._jobs = {job.id: job for job in jobs}
        self._running: dict[str, Job] = {}
        self._on_state = on_state
        self._died = False

    def __reduce__(self) -> tuple[object, ...]:
        # Tune pickles its whole configuration for its `restore`, which is not used here.
        return _Watcher, ((), print)

    def stop_trainings(self) -> None:
        """Ask the running trainings to write a checkpoint and to end, and wait for that."""
        training = [job for job in self._running.values() if job.kind == "train"]
        for job in training:
            request_stop(job.folder)
        deadline_s = time.monotonic() + GRACE_S
        while time.monotonic() < deadline_s and any(last_status(job.journal) == "RUNNING" for job in training):
            time.sleep(0.5)

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        job = self._running[trial.config["id"]] = self._jobs[trial.config["id"]]
        self._on_state(job, "running", "")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._ended(trial, trial.last_result.get("failure"))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._ended(trial, Failure(_DIED, trial.get_error() or ""))
        self._died |= self._jobs[trial.config["id"]].kind != "score"

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if self._died:
            self.stop_trainings()
            raise _TrialDiedError

    def _ended(self, trial: Any, failure: Failure | None) -> None:
        job = self._jobs[trial.config["id"]]
        self._running.pop(job.id, None)
        self.ended.add(job.id)
        if failure is not None:
            self.failures[job.id] = failure
        self._on_state(job, "finished" if failure is None else "failed", "" if failure is None else failure.error)


def _trial(config: dict[str, Any], jobs: Mapping[str, Job], do: Perform) -> dict[str, Any]:
    """Do one job in a process of Tune's. An error is an answer: a crashed trial leaves its workers' places taken."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    job = jobs[config["id"]]
    try:
        do(job, "ray")
    except (Exception, KeyboardInterrupt) as error:
        logging.exception("%s failed", job.label)
        return {"failure": Failure.from_error(error)}
    return {"failure": None}


def _name(trial: Any) -> str:
    return str(trial.config["id"])
