"""The plain-torch launcher: one process, or as many as torchrun starts. Needs neither ray, mlflow nor tyro.

    python -m runyard.training.local spec.json
    torchrun --nproc-per-node 8 -m runyard.training.local spec.json

The specification's `runtime.workers` is not read here: torchrun says how many there are. SIGTERM and Ctrl-C write a
checkpoint first (exit status 143 and 130); the same command goes on from it.
"""

import argparse
import datetime
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from detector.errors import ConfigError, InputError
from detector.models.detector import ScoringRow
from runyard.context import LocalContext
from runyard.failures import NonFiniteLossError, SilentWorkerError, Terminated
from runyard.locks import held
from runyard.runs.attempts import describe_start, record_attempt
from runyard.runs.folder import RunFolder
from runyard.runs.prepare import ACTIVITY, PreparedRun, begun_spec, locate, prepare
from runyard.scoring.inference import keep_candidates
from runyard.spec import ExperimentSpec, from_dict
from runyard.spec.identity import differences
from runyard.tracking.journal import last_status
from runyard.tracking.outcome import close_journal, journaled
from runyard.tracking.runs import TrackedRun
from runyard.tracking.sync import remember_run
from runyard.training.stopping import stops_on_signals
from runyard.training.worker import train


@contextmanager
def process_group(context: LocalContext, timeout_s: float) -> Iterator[None]:
    """A process group over torchrun's processes; none for a single one."""
    if context.world_size == 1:
        yield
        return
    backend = "nccl" if context.device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=datetime.timedelta(seconds=timeout_s))
    try:
        yield
    finally:
        dist.destroy_process_group()


def launch(spec: ExperimentSpec, folder: RunFolder, rows: Sequence[ScoringRow] = ()) -> dict[str, Any] | None:
    """Train a prepared run in this process (and torchrun's others); the final metrics on rank 0, None elsewhere.

    Raises ConfigError for more workers than there are processes.
    """
    check_machine(spec)
    context = LocalContext(use_gpu=_use_gpu(spec))
    with process_group(context, spec.runtime.collective_timeout_s):
        return train(spec, folder, context, rows)


def launch_inference(spec: ExperimentSpec, folder: RunFolder, rows: Sequence[ScoringRow]) -> None:
    """Store a finished run's outputs for `rows`, on the device that `launch` trains on."""
    keep_candidates(spec, folder, rows, LocalContext(use_gpu=_use_gpu(spec)))


def check_machine(spec: ExperimentSpec) -> None:
    """ConfigError for more workers than there are processes, and for GPUs on a machine without one."""
    if spec.runtime.workers not in (1, LocalContext(use_gpu=False).world_size):
        raise ConfigError(
            "the plain launcher trains in one process",
            field="runtime.workers",
            value=spec.runtime.workers,
            remedy="Leave --workers out, use Ray, or start runyard.training.local with torchrun",
        )
    _use_gpu(spec)


def main(arguments: list[str] | None = None) -> int:
    """Prepare the run on rank 0, train it, print the final metrics as JSON; return the exit status."""
    parser = argparse.ArgumentParser(description="Train one experiment with plain torch.")
    parser.add_argument("spec", type=Path, help="a run's spec.json, or what `--dry-run` printed for one training")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        metrics = _run(read_spec(options.spec))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (NonFiniteLossError, SilentWorkerError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as interruption:
        print("interrupted; the same command goes on where this one stopped", file=sys.stderr)
        return 143 if isinstance(interruption, Terminated) else 130
    if metrics is not None:
        print(json.dumps(metrics, indent=1))
    return 0


def read_spec(path: Path) -> ExperimentSpec:
    """The spec of a file that holds a spec, or a dry run of one training; ConfigError for other content."""
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"cannot be read ({error.strerror})", file=path) from error
    except ValueError as error:
        raise ConfigError(f"is not valid JSON ({error})", file=path) from error
    if isinstance(content, dict) and "each_training" in content:
        trainings = content["each_training"]
        if len(trainings) != 1:
            remedy = "Choose one of them with --rows"
            raise ConfigError(f"expected a dry run of one training, found {len(trainings)}", file=path, remedy=remedy)
        content = trainings[0]["spec"]
    spec: ExperimentSpec = from_dict(content)
    return spec


def _run(spec: ExperimentSpec) -> dict[str, Any] | None:
    context = LocalContext(use_gpu=_use_gpu(spec))
    with process_group(context, spec.runtime.collective_timeout_s):
        box: list[Any] = [None, None]
        if context.rank == 0:
            _check_evaluation(spec)
            prepared = prepare(spec)
            box = [prepared, _finished_metrics(prepared)]
        if context.world_size > 1:
            dist.broadcast_object_list(box, src=0, device=context.device)
        prepared, metrics = box
        if metrics is not None:
            return dict(metrics) if context.rank == 0 else None
        with (
            _as_first_rank(prepared) if context.rank == 0 else nullcontext(),
            stops_on_signals(prepared.folder, first_rank=context.rank == 0),
        ):
            return train(prepared.spec, prepared.folder, context)


@contextmanager
def _as_first_rank(prepared: PreparedRun) -> Iterator[None]:
    """Hold the run's lock, and record the attempt, its status and what `runyard sync` needs."""
    folder, spec = prepared.folder, prepared.spec
    with held(folder.lock, ACTIVITY):
        record_attempt(folder, spec, "local", describe_start())
        if not folder.tracking.exists():
            remember_run(folder, spec.runtime.experiment, TrackedRun(folder.root.name, folder.root.name))
        with journaled(folder.journal, spec, (folder.spec, folder.manifest)):
            yield


def _check_evaluation(spec: ExperimentSpec) -> None:
    """ConfigError where the run was begun with another evaluation, unless the spec's has been made elsewhere.

    A run's journal holds one evaluation, and this launcher writes no other journal.
    """
    spec, folder = locate(spec)
    begun = begun_spec(folder, spec)
    if begun is None or begun.scoring_hash == spec.scoring_hash:
        return
    if folder.evaluation(spec.scoring_hash).metrics.exists():
        return
    raise ConfigError(
        f"the run was begun with another evaluation: {'; '.join(differences(begun, spec, 'validation', 'scoring'))}",
        file=folder.root,
        remedy="Score a finished run with ablate_alpha.py --checkpoint-run, or with its sweep's command and "
        "--launcher local; or use another name or storage",
    )


def _finished_metrics(prepared: PreparedRun) -> dict[str, Any] | None:
    """Metrics of a finished run; None where there is something left to do.

    A run that was interrupted after its last step gets its status now.
    """
    folder = prepared.folder
    metrics = folder.evaluation(prepared.spec.scoring_hash).metrics
    if not metrics.exists():
        return None
    if last_status(folder.journal) != "FINISHED":
        with held(folder.lock, ACTIVITY):
            close_journal(folder.journal, "FINISHED")
    found: dict[str, Any] = json.loads(metrics.read_text())
    return found


def _use_gpu(spec: ExperimentSpec) -> bool | None:
    """Whether a worker gets a GPU; None leaves it to what the machine has."""
    gpus = spec.runtime.gpus_per_worker
    if gpus and not torch.cuda.is_available():
        raise ConfigError(
            "this machine has no GPU that torch can use",
            field="runtime.gpus_per_worker",
            value=gpus,
            remedy="Leave --gpus-per-worker out to train on the CPU",
        )
    return None if gpus is None else gpus > 0


if __name__ == "__main__":
    sys.exit(main())
