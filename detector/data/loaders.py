"""Batches from the plan and the files: background processes that read, resize and pad, for training and evaluation.

B images a batch. What is loaded follows from the plan alone, never from the number of loader workers.

Loader workers are forked where the system does that safely (Linux): they share the data set's columns and start within
hundredths of a second, while 'forkserver' and 'spawn' import torch and unpickle the data set for every worker, seconds
of work at every evaluation. Forking a process that has threads is safe here because the children touch neither CUDA
nor the network, and run torch on one thread. The training loader's are started once a run.
"""

import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from detector.config import DataConfig
from detector.data.batching import Batch, collate
from detector.data.epoch_plan import MicroBatch, TrainingPlan, aspect_groups, evaluation_batches, trainable_images
from detector.data.samples import Dataset
from detector.data.transforms import flips, load_sample
from detector.errors import InputError

START_METHOD = "fork" if sys.platform == "linux" else None
# torch looks for dead loader workers only when its own time-out is over (it hears of them at once in the main thread,
# and Ray trains in another one). So torch waits this long, again and again, until our time-out is over.
CHECK_INTERVAL_S = 5.0


class BatchLoader:
    """Iterates over the batches of a plan in its order; `len()` is their number.

    Iterating raises `InputError` (`DatasetError` naming the file) for an image that cannot be used, just as it was
    raised in the loader worker, and `TimeoutError` naming the images waited for after `timeout_s` without a batch
    (without loader workers nobody watches the clock).
    """

    def __init__(
        self,
        reader: "TorchDataset[Batch | InputError]",
        plan: "TrainingPlan | Sequence[MicroBatch]",
        dataset: Dataset,
        *,
        loader_workers: int,
        pin_memory: bool,
        timeout_s: float,
    ) -> None:
        self._plan = plan
        self._dataset = dataset
        self._timeout_s = timeout_s
        self._loader = DataLoader(
            reader,
            sampler=plan,  # any iterable with a length will do
            batch_size=None,
            num_workers=loader_workers,
            pin_memory=pin_memory,
            timeout=min(timeout_s, CHECK_INTERVAL_S) if loader_workers else 0,
            multiprocessing_context=START_METHOD if loader_workers else None,
            worker_init_fn=_leave_interrupts_to_the_parent,
            # torch draws a seed at every start, by default from the global generator: with its own, making a loader
            # changes no later random number.
            generator=torch.Generator().manual_seed(0),
        )

    def __len__(self) -> int:
        return len(self._plan)

    def __iter__(self) -> Iterator[Batch]:
        received = 0
        waiting_since = time.monotonic()
        batches = iter(self._loader)
        while True:
            try:
                item = next(batches)
            except StopIteration:
                return
            except RuntimeError as error:
                timed_out = str(error).startswith("DataLoader timed out")
                if timed_out and time.monotonic() - waiting_since < self._timeout_s:
                    continue
                waited_for = next(islice(iter(self._plan), received, None))
                files = ", ".join(str(self._dataset.image_paths[i]) for i in waited_for.images)
                if timed_out:
                    raise TimeoutError(
                        f"no batch arrived for {self._timeout_s:g} s, while waiting for {files}. "
                        "Is their storage reachable? Else give more loader workers, or a longer time-out"
                    ) from None
                error.add_note(f"while waiting for step {waited_for.step} of epoch {waited_for.epoch}: {files}")
                error.add_note(_why_loader_workers_die())
                raise
            if isinstance(item, InputError):
                raise item
            received += 1
            yield item
            waiting_since = time.monotonic()


def _why_loader_workers_die() -> str:
    shared_memory = Path("/dev/shm")
    free = f" ({shutil.disk_usage(shared_memory).free / 2**20:.0f} MiB free)" if shared_memory.is_dir() else ""
    return (
        f"a loader worker that dies without an error lacked memory, or shared memory{free} to hand its images over; "
        "with runtime.loader_workers 0 there are none"
    )


class _TrainingReader(TorchDataset["Batch | InputError"]):
    def __init__(self, dataset: Dataset, config: DataConfig, seed: int) -> None:
        self._dataset = dataset
        self._config = config
        self._seed = seed

    def __getitem__(self, part: MicroBatch) -> Batch | InputError:
        mirrored = flips(self._seed, part.epoch, part.images, self._config.flip_probability).tolist()
        return _read(self._dataset, self._config, part, mirrored)


class _EvaluationReader(TorchDataset["Batch | InputError"]):
    def __init__(self, dataset: Dataset, config: DataConfig) -> None:
        self._dataset = dataset
        self._config = config

    def __getitem__(self, part: MicroBatch) -> Batch | InputError:
        return _read(self._dataset, self._config, part, [False] * len(part.images))


def _read(dataset: Dataset, config: DataConfig, part: MicroBatch, mirrored: list[bool]) -> Batch | InputError:
    """The batch, or, as a value, what is wrong with its images.

    torch rebuilds an exception that a loader worker raises from its printed traceback: the user would be shown that
    instead of one line, and the error's fields would be lost.
    """
    images = part.images.tolist()
    try:
        samples = [load_sample(dataset, i, config, flip) for i, flip in zip(images, mirrored, strict=True)]
    except InputError as error:
        return error
    batch = collate(samples, config.size_divisor, part.fillers)
    return replace(batch, epoch=part.epoch, step=part.step, micro=part.micro)


def _leave_interrupts_to_the_parent(_: int) -> None:
    # Ctrl-C reaches the whole process group; the workers end with their parent, without a traceback each.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def make_train_loader(
    dataset: Dataset,
    config: DataConfig,
    *,
    seed: int,
    start_epoch: int,
    start_step: int,
    epochs: int,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    accumulation: int = 1,
    loader_workers: int = 0,
    pin_memory: bool = False,
    timeout_s: float = 600.0,
) -> BatchLoader:
    """One worker's micro-batches from step `start_step` of epoch `start_epoch` to the end of the run, in order.

    Each `Batch` says its epoch, step and micro-batch. The same for any `loader_workers`; 0 reads in this process.
    Raises `DatasetError` where the data set has no image to train on.
    """
    images = trainable_images(dataset, config)
    plan = TrainingPlan(
        images,
        aspect_groups(dataset, images, config),
        seed=seed,
        start_epoch=start_epoch,
        start_step=start_step,
        epochs=epochs,
        batch_size=batch_size,
        rank=rank,
        world_size=world_size,
        accumulation=accumulation,
    )
    reader = _TrainingReader(dataset, config, seed)
    return BatchLoader(reader, plan, dataset, loader_workers=loader_workers, pin_memory=pin_memory, timeout_s=timeout_s)


def make_eval_loader(
    dataset: Dataset,
    config: DataConfig,
    *,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    loader_workers: int = 0,
    pin_memory: bool = False,
    timeout_s: float = 600.0,
) -> BatchLoader:
    """One worker's batches of every image of the data set, unflipped; over all ranks each image comes exactly once.

    A batch's `step` is its number over all ranks. `val_limit` is not applied here: pass `Dataset.subset`, so that
    what is scored and what is detected are the same images. Iterating again evaluates again.
    """
    batches = evaluation_batches(dataset.image_sizes, config, batch_size)
    plan = [MicroBatch(epoch=0, step=step, micro=0, images=batch) for step, batch in enumerate(batches)]
    reader = _EvaluationReader(dataset, config)
    return BatchLoader(
        reader,
        plan[rank::world_size],
        dataset,
        loader_workers=loader_workers,
        pin_memory=pin_memory,
        timeout_s=timeout_s,
    )
