"""P5: two workers against one, each with the same share of the work (weak scaling).

gloo on CPUs with one thread each, NCCL where there are two GPUs. Both measurements are taken in the same two processes,
in turn: for the first, the second process waits.
"""

import multiprocessing
import os
import queue
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks import our_detector
from benchmarks.rows import AnyRow, NotRun, Row
from benchmarks.settings import LEARNING_RATE, Settings, precision
from benchmarks.timing import interleaved, seconds
from benchmarks.workloads import COCO_CLASSES, FULL_SIZE, training_batch
from detector.config import BackboneConfig

WORKERS = 2
_PATIENCE_S = 1800.0
_WHAT = "two workers against one, the same work each"


def measure(settings: Settings) -> list[AnyRow]:
    """P5."""
    if settings.on_gpu and torch.cuda.device_count() < WORKERS:
        return [NotRun("P5", f"{_WHAT}, NCCL", "needs two GPUs")]
    if (os.cpu_count() or 1) < WORKERS:
        return [NotRun("P5", _WHAT, "needs two processor cores")]
    images = 16 if settings.on_gpu else 2 if settings.quick else 4
    size = settings.size(FULL_SIZE, (256, 320))
    processes = multiprocessing.get_context("spawn")
    answers = processes.Queue()
    with tempfile.TemporaryDirectory() as folder:
        workers = [
            processes.Process(target=_work, args=(rank, f"{folder}/meet", settings, images, size, answers), daemon=True)
            for rank in range(WORKERS)
        ]
        for worker in workers:
            worker.start()
        try:
            ours, other = _answer(answers, workers)
        finally:
            for worker in workers:
                worker.join(30)
                worker.kill()
    where = "NCCL" if settings.on_gpu else "gloo, one core each"
    shape = f"{images} x {size[0]}x{size[1]} a worker, {precision(settings.dtype)}, {where}"
    rows: list[AnyRow] = [
        Row(
            key="P5",
            what=_WHAT,
            size=settings.describe(shape, full=settings.on_gpu),
            kind="speed-up",
            unit="s",
            ours=ours,
            other=other,
            other_name="one worker",
            goal=None if settings.on_gpu else settings.goal(0.9, at_least=True),
            goal_text="0.9 and more, on CPUs with a core each",
        )
    ]
    if not settings.on_gpu:
        rows.append(NotRun("P5", f"{_WHAT}, NCCL", "needs two GPUs"))
    return rows


def _answer(answers: Any, workers: list[Any]) -> tuple[list[float], list[float]]:
    """The first worker's measurements; RuntimeError where a worker has died."""
    for _ in range(int(_PATIENCE_S)):
        try:
            found: tuple[list[float], list[float]] = answers.get(timeout=1.0)
            return found
        except queue.Empty:
            if any(worker.exitcode not in (None, 0) for worker in workers):
                raise RuntimeError("a worker of the scaling benchmark has failed") from None
    raise TimeoutError(f"the scaling benchmark has not ended after {_PATIENCE_S:.0f} s")


def _work(rank: int, meeting: str, settings: Settings, images: int, size: tuple[int, int], answers: Any) -> None:
    if settings.on_gpu:
        device = torch.device("cuda", rank)
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
        torch.set_num_threads(1)
    trunk = BackboneConfig(name="resnet18", weights="none") if settings.quick else BackboneConfig()
    batch = training_batch(images, size, seed=rank)
    # An engine works alone or with others as it finds things when it is made.
    alone = our_detector.engine(our_detector.build(COCO_CLASSES, device, backbone=trunk), settings.dtype)
    dist.init_process_group(
        "nccl" if settings.on_gpu else "gloo", init_method=Path(meeting).as_uri(), rank=rank, world_size=WORKERS
    )
    together = our_detector.engine(our_detector.build(COCO_CLASSES, device, backbone=trunk), settings.dtype)

    def one_works() -> float:
        dist.barrier()
        if rank > 0:
            return 0.0
        return seconds(lambda: alone.step([batch], LEARNING_RATE), device)()

    def both_work() -> float:
        dist.barrier()
        return seconds(lambda: together.step([batch], LEARNING_RATE), device)()

    found = interleaved(both_work, one_works, repeats=settings.repeats(20 if settings.on_gpu else 8), warm_up=1)
    dist.barrier()
    if rank == 0:
        answers.put(found)
    dist.destroy_process_group()
