"""The Ray Train launcher: the same training loop on as many workers as the spec asks for."""

import logging
import math
import os
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
from ray.exceptions import RayActorError, RayTaskError
from ray.train import (
    Checkpoint,
    CheckpointUploadMode,
    FailureConfig,
    LoggingConfig,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
)

from detector.errors import ConfigError, InputError
from detector.models.detector import ScoringRow
from runyard.failures import NonFiniteLossError, SilentWorkerError, TrainingError, TrainingStoppedError
from runyard.runs.folder import RunFolder
from runyard.spec import ExperimentSpec, from_dict, to_dict
from runyard.tracking.journal import Journal, JournalError

CONTROLLER_FAILURES = 5
"""Attempts to start a worker group before the run fails; Ray's own default retries forever in silence."""

_FINAL = (InputError, NonFiniteLossError, TrainingStoppedError)
"""Errors of workers that another attempt would not change."""

_NCCL_TIME_OUT = (
    "(Perhaps another worker did not answer for runtime.collective_timeout_s: then this one's log has 'Watchdog caught "
    "collective operation timeout')"
)

ELASTIC_START_TIMEOUT_S = 10.0
"""How long an elastic group waits for its places before Ray counts the nodes anew; it may have counted a lost one."""

RESIZE_INTERVAL_S = 60.0
"""How often an elastic group looks whether it could be larger."""

_log = logging.getLogger(__name__)


class RayContext:
    """This worker's place in Ray's worker group."""

    def __init__(self) -> None:
        context = ray.train.get_context()
        self.rank: int = context.get_world_rank()
        self.world_size: int = context.get_world_size()
        self.device = ray.train.torch.get_device()
        self.cpus = max(int(ray.get_runtime_context().get_assigned_resources().get("CPU", 1)), 1)

    def report(self, metrics: dict[str, float], checkpoint: Path) -> None:
        """Registers the checkpoint that rank 0 has written to the run's folder, where it stays: nothing is copied."""
        try:
            ray.train.report(
                metrics,
                checkpoint=Checkpoint.from_directory(checkpoint) if self.rank == 0 else None,
                checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD,
            )
        except RayTaskError as error:
            if "collective operation timed out" not in str(error):
                raise
            raise SilentWorkerError(
                "another worker did not come to the report of a checkpoint in time (runtime.collective_timeout_s)"
            ) from error


def launch(spec: ExperimentSpec, folder: RunFolder, rows: Sequence[ScoringRow] = ()) -> dict[str, Any]:
    """Train a prepared run on a connected Ray cluster and return the final metrics.

    A failed attempt is followed by another from the last checkpoint, `runtime.max_failures` times, and the journal
    tells of it. Raises ConfigError where the cluster can never hold the workers, the workers' own InputError for a
    user's mistake that only they could see, NonFiniteLossError, TrainingStoppedError, and for the rest TrainingError
    with the first attempt's error; its note is that one's traceback.
    """
    return dict(run_on_workers(spec, folder, _train_worker, {"rows": tuple(rows)}))


def launch_inference(spec: ExperimentSpec, folder: RunFolder, rows: Sequence[ScoringRow]) -> None:
    """Store a finished run's outputs for `rows` on a connected Ray cluster; attempts and errors as in `launch`."""
    run_on_workers(spec, folder, _inference_worker, {"rows": tuple(rows)})


def run_on_workers(
    spec: ExperimentSpec, folder: RunFolder, work: Callable[[dict[str, Any]], Any], config: dict[str, Any]
) -> Any:
    """Run a function on the workers that a spec asks for; return rank 0's value. Attempts as in `launch`.

    Args:
        work: gets `config`, with the plain form of the spec as 'spec' and the run folder's path as 'folder'.
    """
    gpus = gpus_per_worker(spec)
    check_resources(spec, gpus)
    config = {**config, "spec": to_dict(spec), "folder": str(folder.root), "work": work}
    failures: list[str] = []
    first_traceback = ""
    while True:
        started_at = _progress(folder)
        try:
            return _fit(spec, folder, gpus, config)
        except (TrainingFailedError, RayActorError) as error:
            rank, cause = _first_cause(error)
            if isinstance(cause, _FINAL):
                raise cause from error
            if folder.stop_request.exists():
                raise TrainingStoppedError("a worker failed after the run was asked to stop") from error
            failures.append(_description(rank, cause, several_gpus=gpus * spec.runtime.workers > 1))
            details = "\n".join(getattr(cause, "__notes__", ())) or str(error)
            first_traceback = first_traceback or details
            _log.warning("attempt %d failed: %s", len(failures), failures[-1])
            _journal_failure(folder, len(failures), failures[-1], details)
            # The same error twice at the same place is a bug, not bad luck: more attempts only hide its message.
            accident = isinstance(cause, SilentWorkerError | RayActorError)
            repeated = not accident and failures[-2:] == failures[-1:] * 2 and _progress(folder) == started_at
            if len(failures) > spec.runtime.max_failures or repeated:
                given_up = TrainingError(f"given up after {len(failures)} failures; the first was {failures[0]}")
                given_up.add_note(first_traceback)
                raise given_up from error


def _fit(spec: ExperimentSpec, folder: RunFolder, gpus: int, config: dict[str, Any]) -> Any:
    """One attempt."""
    # Ray's list of checkpoints is of no use to us after a restart (the run folder is searched instead), and Ray refuses
    # to start when a checkpoint on that list has been pruned.
    (folder.root / "checkpoint_manager_snapshot.json").unlink(missing_ok=True)
    runtime = spec.runtime
    # Workers also wait for one another in Ray's `report`, by default for ever; the controller passes this on to them.
    settings = {"RAY_TRAIN_COLLECTIVE_TIMEOUT_S": runtime.collective_timeout_s}
    if runtime.min_workers is not None:
        settings["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = ELASTIC_START_TIMEOUT_S
    trainer = ray.train.torch.TorchTrainer(
        _do_work,
        train_loop_config=config,
        torch_config=ray.train.torch.TorchConfig(timeout_s=math.ceil(runtime.collective_timeout_s)),
        scaling_config=ScalingConfig(
            num_workers=runtime.workers if runtime.min_workers is None else (runtime.min_workers, runtime.workers),
            use_gpu=gpus > 0,
            resources_per_worker={"CPU": runtime.cpus_per_worker, **({"GPU": gpus} if gpus else {})},
            elastic_resize_monitor_interval_s=RESIZE_INTERVAL_S,
        ),
        run_config=RunConfig(
            name=folder.root.name,
            storage_path=str(folder.root.parent),
            # Attempts are counted in `run_on_workers`, which knows what is worth another one.
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=CONTROLLER_FAILURES),
            logging_config=LoggingConfig(log_level="WARNING"),
        ),
    )
    with _environment({name: str(value) for name, value in settings.items()}):
        return _fit_with_our_signals(trainer).return_value


@contextmanager
def _environment(settings: dict[str, str]) -> Iterator[None]:
    """Environment variables for the block alone: the next run of this process may be another one."""
    earlier = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in earlier.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _fit_with_our_signals(trainer: ray.train.torch.TorchTrainer) -> ray.train.Result:
    """In the main thread `fit` takes Ctrl-C for itself, for good: workers get no time, and the exit status is 0.

    So it runs in another. Where waiting for it is interrupted all the same, this process leaves the cluster, which ends
    its workers.
    """
    if threading.current_thread() is not threading.main_thread():
        return trainer.fit()
    outcome: Future[ray.train.Result] = Future()

    def fit() -> None:
        try:
            outcome.set_result(trainer.fit())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=fit, name="ray-train", daemon=True).start()
    try:
        return outcome.result()
    except KeyboardInterrupt:
        ray.shutdown()
        raise


def _progress(folder: RunFolder) -> str | None:
    """The newest checkpoint's name."""
    return next((checkpoint.name for checkpoint in folder.checkpoints()), None)


def gpus_per_worker(spec: ExperimentSpec) -> int:
    """GPUs of one worker: what the spec says, else one where the cluster has any and none where it has none.

    Raises ConfigError where the cluster has GPUs, but fewer than (the fewest) workers, and where an autoscaler may add
    the first node with GPUs: training on CPUs in their place has to be asked for.
    """
    if spec.runtime.gpus_per_worker is not None:
        return spec.runtime.gpus_per_worker
    have, workers = int(ray.cluster_resources().get("GPU", 0)), spec.runtime.min_workers or spec.runtime.workers
    if _autoscales():
        if have == 0:
            raise ConfigError(
                "the cluster has no GPU yet, and GPUs of nodes that are added on demand are not known",
                field="runtime.gpus_per_worker",
                remedy="Say --gpus-per-worker 1, or 0 to train on CPUs",
            )
    elif 0 < have < workers:
        raise ConfigError(
            f"the cluster has {have} GPUs for {workers} workers",
            field="runtime.workers",
            value=workers,
            remedy="Ask for as many workers as there are GPUs, or say --gpus-per-worker 0 to train on CPUs",
        )
    return int(have > 0)


def _autoscales() -> bool:
    """Whether nodes are added on demand, so that the cluster as it stands does not tell what it can hold."""
    return bool(os.environ.get("RUNYARD_AUTOSCALING"))


def check_resources(spec: ExperimentSpec, gpus: int) -> None:
    """ConfigError where the cluster, as it stands and without an autoscaler, is too small for the (fewest) workers."""
    have = ray.cluster_resources()
    workers = spec.runtime.min_workers or spec.runtime.workers
    for kind, needed in (("CPU", workers * spec.runtime.cpus_per_worker), ("GPU", workers * gpus)):
        if needed > have.get(kind, 0) and not _autoscales():
            raise ConfigError(
                f"{workers} workers need {needed} {kind}, the cluster has {have.get(kind, 0):g}",
                field="runtime.workers",
                remedy="Ask for fewer workers, add nodes, or set RUNYARD_AUTOSCALING=1 where nodes are added on demand",
            )


def _do_work(config: dict[str, Any]) -> Any:
    """What every worker runs."""
    try:
        return config["work"](config)
    except _FINAL:
        raise
    except Exception as error:
        error.add_note(traceback.format_exc())  # Ray hands on its first and its last lines
        raise


def _train_worker(config: dict[str, Any]) -> dict[str, Any] | None:
    # Imported here: the driver's process needs no model.
    from runyard.training.worker import train

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    return train(from_dict(config["spec"]), RunFolder(Path(config["folder"])), RayContext(), config["rows"])


def _inference_worker(config: dict[str, Any]) -> None:
    from runyard.scoring.inference import keep_candidates

    keep_candidates(from_dict(config["spec"]), RunFolder(Path(config["folder"])), config["rows"], RayContext())


def _first_cause(error: TrainingFailedError | RayActorError) -> tuple[int | None, Exception]:
    """The rank and error that the others followed from: when one worker ends, those that wait for it fail as well."""

    def order(failure: tuple[int, Exception]) -> tuple[int, int]:
        rank, cause = failure
        if isinstance(cause, _FINAL):
            return 0, rank
        return 3 if isinstance(cause, SilentWorkerError) else 2 if isinstance(cause, RayActorError) else 1, rank

    failures = getattr(error, "worker_failures", None) or {}
    # A dead worker is reported as a failed health check.
    causes = {rank: getattr(failure, "health_check_failure", failure) for rank, failure in failures.items()}
    return min(causes.items(), key=order) if causes else (None, error)


def _description(rank: int | None, cause: Exception, *, several_gpus: bool = False) -> str:
    """One line that a person can read.

    Args:
        several_gpus: the workers talk by NCCL, whose time-out ends a worker's process.
    """
    who = "Ray's controller" if rank is None else f"worker {rank}"
    if isinstance(cause, RayActorError):
        reason = " ".join((str(cause).partition("The actor is dead because ")[2] or str(cause)).split())
        text = f"{who} died: {reason.partition(' Some common causes')[0]}"
        return text + (f" {_NCCL_TIME_OUT}" if several_gpus and rank is not None else "")
    if isinstance(cause, TrainingFailedError):  # Ray appends pages about the node's memory; they are in its logs
        return " ".join(str(cause).splitlines()[:2])[:500]
    return f"{who}: {type(cause).__name__}: {' '.join(str(cause).split())}"


def _journal_failure(folder: RunFolder, attempt: int, problem: str, details: str) -> None:
    try:
        with Journal(folder.journal) as journal:
            event = {"event": "attempt_failed", "attempt": attempt, "message": f"attempt {attempt} failed: {problem}"}
            journal.append("event", {**event, "details": details})
    except JournalError as error:  # a worker that is not quite dead; the log has told it already
        _log.warning("%s", error)
