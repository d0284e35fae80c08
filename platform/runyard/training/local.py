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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist

from detector.errors import ConfigError, InputError
from runyard.context import LocalContext
from runyard.failures import NonFiniteLossError, SilentWorkerError, Terminated
from runyard.runs.folder import RunFolder
from runyard.runs.prepare import prepare
from runyard.spec import ExperimentSpec, from_dict
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


def launch(spec: ExperimentSpec, folder: RunFolder) -> dict[str, Any] | None:
    """Trains a prepared run in this process (and torchrun's others); the final metrics on rank 0, None elsewhere."""
    context = LocalContext(use_gpu=None if spec.runtime.gpus_per_worker is None else spec.runtime.gpus_per_worker > 0)
    with process_group(context, spec.runtime.collective_timeout_s):
        return train(spec, folder, context)


def main(arguments: list[str] | None = None) -> int:
    """Prepares the run on rank 0, trains it, prints the final metrics as JSON; returns the exit status."""
    parser = argparse.ArgumentParser(description="Train one experiment with plain torch.")
    parser.add_argument("spec", type=Path, help="a spec.json as `--dry-run` prints it")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        spec: ExperimentSpec = from_dict(_read_json(options.spec))
        use_gpu = None if spec.runtime.gpus_per_worker is None else spec.runtime.gpus_per_worker > 0
        context = LocalContext(use_gpu=use_gpu)
        with process_group(context, spec.runtime.collective_timeout_s):
            box: list[Any] = [None]
            if context.rank == 0:
                box = [prepare(spec)]
            if context.world_size > 1:
                dist.broadcast_object_list(box, src=0, device=context.device)
            prepared = box[0]
            with stops_on_signals(prepared.folder, first_rank=context.rank == 0):
                metrics = train(prepared.spec, prepared.folder, context)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (NonFiniteLossError, SilentWorkerError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as interruption:
        print("interrupted; the same command continues the run", file=sys.stderr)
        return 143 if isinstance(interruption, Terminated) else 130
    if metrics is not None:
        print(json.dumps(metrics, indent=1))
    return 0


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"cannot be read ({error.strerror})", file=path) from error
    except ValueError as error:
        raise ConfigError(f"is no JSON ({error})", file=path) from error


if __name__ == "__main__":
    sys.exit(main())
