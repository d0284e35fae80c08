"""P3: time that training waits for its images: steps fed by the loader, real JPEGs, against steps on one fixed batch.

The loader's processes read ahead while the fixed batch is trained on. What they have in store is used up first, so
that the steps which are timed run at the pace that the loader can keep.
"""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks import our_detector
from benchmarks.photos import PHOTO_SIZE, make_photographs
from benchmarks.rows import Row
from benchmarks.settings import GPU, LEARNING_RATE, Settings, precision
from benchmarks.timing import interleaved, seconds
from benchmarks.workloads import COCO_CLASSES
from detector.config import BackboneConfig, DataConfig
from detector.data.batching import Batch
from detector.data.loaders import make_train_loader
from detector.engine import StepResult, TrainingEngine

FULL_SPEED_CORES = 16
_READ_AHEAD = 2  # batches that each of torch's loader processes keeps ready


def measure(settings: Settings) -> list[Row]:
    """P3."""
    images = 16 if settings.on_gpu else 4
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    processes = max(1, cores - 1)
    data = DataConfig() if settings.on_gpu and not settings.quick else DataConfig(short_side_px=96, long_side_px=160)
    steps = 30 if settings.on_gpu else 8
    if settings.quick:
        processes, steps = 1, 2
    with tempfile.TemporaryDirectory() as folder:
        count = 16 * images if settings.on_gpu else 8 * images
        dataset = make_photographs(Path(folder) / "photographs", count, (160, 120) if settings.quick else PHOTO_SIZE)
        loader = make_train_loader(
            dataset,
            data,
            seed=0,
            start_epoch=0,
            start_step=0,
            epochs=1_000_000,
            batch_size=images,
            loader_workers=processes,
            pin_memory=settings.on_gpu,
        )
        batches = iter(loader)
        fixed = next(batches)
        trunk = BackboneConfig() if settings.on_gpu else BackboneConfig(name="resnet18", weights="none")
        engine = our_detector.engine(our_detector.build(COCO_CLASSES, settings.device, backbone=trunk), settings.dtype)

        def from_loader() -> float:
            run_steps(engine, batches, _READ_AHEAD * processes)
            return seconds(lambda: run_steps(engine, batches, steps), settings.device)() / steps

        def from_memory() -> float:
            return seconds(lambda: run_steps(engine, repeat(fixed), steps), settings.device)() / steps

        ours, other = interleaved(from_loader, from_memory, repeats=settings.repeats(6))
    height, width = fixed.images.shape[2:]
    full = settings.on_gpu and cores >= FULL_SPEED_CORES
    size = f"{images} x {height}x{width} from JPEG, {precision(settings.dtype)}, {processes} loader processes"
    return [
        Row(
            key="P3",
            what="time waited for data",
            size=settings.describe(size, full=full),
            kind="overhead",
            unit="s",
            ours=ours,
            other=other,
            other_name="one fixed batch",
            goal=settings.goal(0.02, at_least=False, on="" if full else f"{GPU} and {FULL_SPEED_CORES} cores"),
            goal_text=f"at most 2 % of a GPU's step, with {FULL_SPEED_CORES} cores",
        )
    ]


def run_steps(engine: TrainingEngine, batches: Iterator[Batch], count: int) -> None:
    """Train as the training loop does, which reads a step's result once the next one is on its way."""
    unread: StepResult | None = None
    for _ in range(count):
        result = engine.step([next(batches)], LEARNING_RATE)
        if unread is not None:
            unread.read()
        unread = result


def repeat(batch: Batch) -> Iterator[Batch]:
    """The same batch for ever."""
    while True:
        yield batch
