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

from detector.models.detector import ScoringRow
from runyard.driver.errors import Failure
from runyard.driver.jobs import Job, perform
from runyard.runs.folder import RunFolder
from runyard.scoring.inference import keep_candidates
from runyard.spec import ExperimentSpec, from_dict
from runyard.tracking.journal import last_status
from runyard.training import ray_train
from runyard.training.stopping import GRACE_S, request_stop

OnState = Callable[[Job, str, str], None]

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
    """Does jobs on a Ray cluster."""

    def __init__(
        self,
        spec: ExperimentSpec,
        folder: Path,
        connect: Callable[[], None],
        *,
        max_concurrent: int | None = None,
        do: Callable[[Job], None] | None = None,
    ) -> None:
        """Connects, and checks that the cluster can hold one training.

        Args:
            spec: any of the sweep's; they ask for the same resources.
            folder: for Tune's own files, which are removed afterwards.
            connect: connects this process to the cluster; called again where a trial's process has died.
            max_concurrent: trainings at once; None: as many as the cluster can hold.
            do: what does a job, in a process of Tune's; None: `trials.perform` with Ray Train.
        """
        connect()
        gpus = ray_train.gpus_per_worker(spec)
        ray_train.check_resources(spec, gpus)
        self.slots = min(max_concurrent or 1_000_000, training_slots(spec, gpus))
        self._folder = folder
        self._connect = connect
        self._do = do or _perform
        self._watcher: _Watcher | None = None

    def run(self, jobs: Sequence[Job], on_state: OnState) -> dict[str, Failure]:
        """Does all jobs and tells what made some fail, by the jobs' ids; one failure stops no other job.

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
        training = [job for job in jobs if job.kind != "score"]
        assert not training or len(training) == len(jobs), "a stage is of one kind"
        os.environ.update({name: os.environ.get(name, value) for name, value in ENVIRONMENT.items()})
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # failures are told by us
        shutil.rmtree(self._folder, ignore_errors=True)
        by_id = {job.id: job for job in jobs}
        try:
            tune.Tuner(
                tune.with_resources(
                    tune.with_parameters(_trial, jobs=by_id, do=self._do),
                    TRAINING_RESOURCES if training else SCORING_RESOURCES,
                ),
                param_space={"id": tune.grid_search(list(by_id))},
                tune_config=tune.TuneConfig(
                    max_concurrent_trials=self.slots if training else None,
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

    def stop(self) -> None:
        """Lets the running trainings write a checkpoint, for a minute at most, then leaves the cluster."""
        if self._watcher is not None:
            self._watcher.stop_trainings()
        ray.shutdown()


class _TrialDiedError(RuntimeError):
    """The process of a training's trial was killed."""


def training_slots(spec: ExperimentSpec, gpus: int) -> int:
    """How many trainings the nodes can hold at once, at least 1; a worker needs all its resources on one node."""
    needed = {"CPU": spec.runtime.cpus_per_worker, **({"GPU": gpus} if gpus else {})}
    workers = 0
    for node in ray.nodes():
        if node["Alive"]:
            have = node["Resources"]
            workers += min(int(have.get(kind, 0) // amount) for kind, amount in needed.items())
    return max(workers // spec.runtime.workers, 1)


class _Watcher(TrialProgressCallback):
    """Hears from Tune, in the driver's process, how the trials are doing; in place of Tune's own that prints it."""

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
        """Asks the running trainings to write a checkpoint and to end, and waits for that."""
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


def _trial(config: dict[str, Any], jobs: Mapping[str, Job], do: Callable[[Job], None]) -> dict[str, Any]:
    """In a process of Tune's: does one job. An error is an answer: a crashed trial leaves its workers' places taken."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    job = jobs[config["id"]]
    try:
        do(job)
    except (Exception, KeyboardInterrupt) as error:
        logging.exception("%s failed", job.label)
        return {"failure": Failure.of(error)}
    return {"failure": None}


def _perform(job: Job) -> None:
    perform(job, "ray", _write_candidates)


def _write_candidates(spec: ExperimentSpec, folder: RunFolder, rows: Sequence[ScoringRow]) -> None:
    ray_train.run_on_workers(spec, folder, _candidates_worker, {"rows": tuple(rows)})


def _candidates_worker(config: dict[str, Any]) -> None:
    spec, folder = from_dict(config["spec"]), RunFolder(Path(config["folder"]))
    keep_candidates(spec, folder, config["rows"], ray_train.RayContext())


def _name(trial: Any) -> str:
    return str(trial.config["id"])
