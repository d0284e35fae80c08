"""P14: peak memory of a training step an image, against torchvision's; and that of the candidate store.

Of a training step counted is what PyTorch allocates (a GPU's allocator says its peak; on a CPU the profiler sees every
allocation). Of the store counted is the process's largest resident size (Linux), as most of it is Parquet's.
"""

import json
import multiprocessing
import tempfile
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

import torch

from benchmarks import our_detector, torchvision_detector
from benchmarks.rows import AnyRow, NotRun, Row
from benchmarks.settings import LEARNING_RATE, Settings, precision
from benchmarks.workloads import COCO_CLASSES, FULL_SIZE, training_batch
from detector.config import ScoringConfig

_MIB = 2**20
_STATUS = Path("/proc/self/status")
_STORE_GROWTH = 1.25
"""Four times the images may take so much of the memory: what a store holds at a time varies with its images."""


def measure(settings: Settings) -> list[AnyRow]:
    """P14."""
    rows: list[AnyRow] = [measure_training(settings), measure_store(settings)]
    if not settings.on_gpu:
        rows.insert(1, NotRun("P14", "peak memory of a training step on a GPU, batch 16, bfloat16", "needs a GPU"))
    return rows


def measure_training(settings: Settings) -> Row:
    """Ours and torchvision's step."""
    images = 16 if settings.on_gpu else 1
    # The smaller the image, the more of it all are the weights' gradients: so on a CPU not much smaller.
    size = settings.size(FULL_SIZE, (600, 1000))
    steps = settings.repeats(6)
    ours, other = (
        [peak / images / _MIB for peak in training_peaks(side, settings, images, size, steps)]
        for side in ("ours", "other")
    )
    shape = settings.describe(f"{images} x {size[0]}x{size[1]}, {precision(settings.dtype)}", full=settings.on_gpu)
    return Row(
        key="P14",
        what="peak memory of a training step, an image",
        size=shape,
        kind="ratio",
        unit="MiB",
        ours=ours,
        other=other,
        other_name="torchvision",
        goal=settings.goal(1.0, at_least=False),
        goal_text="below torchvision's",
    )


def measure_store(settings: Settings) -> AnyRow:
    """Writing and reading a store of candidates, of some and of four times as many images."""
    what = "peak memory while candidates are stored and read, four times the images"
    if not _STATUS.exists():
        return NotRun("P14", what, "this system has no /proc/self/status")
    few = 64 if settings.quick else 1024
    # In a fresh process: memory that an earlier comparison has left behind does not count.
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        peaks = pool.apply(_store_peaks, (few, settings.repeats(6)))
    ours, other = ([peak / _MIB for peak in column] for column in zip(*peaks, strict=True))
    return Row(
        key="P14",
        what=what,
        size=f"{4 * few:,} and {few:,} images of 100 to 300 candidates",
        kind="ratio",
        unit="MiB",
        ours=ours,
        other=other,
        other_name=f"{few:,} images",
        goal=settings.goal(_STORE_GROWTH, at_least=False),
        goal_text="independent of the number of images",
        note="without the table of detections that scoring returns, which is the result",
    )


def training_peaks(side: str, settings: Settings, images: int, size: tuple[int, int], steps: int) -> list[float]:
    """Bytes that each step needs at its peak beyond what is there between steps."""
    device, dtype = settings.device, settings.dtype
    batch = training_batch(images, size)
    if side == "ours":
        engine = our_detector.engine(our_detector.build(COCO_CLASSES, device), dtype)

        def step() -> None:
            engine.step([batch], LEARNING_RATE)
    else:
        model = torchvision_detector.build(COCO_CLASSES, size).train().to(device)
        updates = torchvision_detector.optimizer(model)
        updates.param_groups[0]["lr"] = LEARNING_RATE
        floats, truth = torchvision_detector.float_images(batch), torchvision_detector.targets(batch)

        def step() -> None:
            torchvision_detector.train_step(model, updates, floats, truth, device, dtype)
            updates.zero_grad(set_to_none=True)  # ours leaves no gradients behind either

    step()
    peak = _peak_on_gpu if device.type == "cuda" else _peak_on_cpu
    return [peak(step) for _ in range(steps)]


def _store_peaks(few: int, repeats: int) -> list[tuple[float, float]]:
    """Bytes beyond the process's size at the start: with four times `few` images, and with `few`."""
    from detector.models.detector import Detections, ScoringRow
    from detector.rescoring.columns import ImageRows
    from detector.rescoring.header import PartHeader, StoreIdentity
    from detector.rescoring.store import CandidateStore, PartWriter, next_part, publish_part

    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    rows = tuple(ScoringRow(ScoringConfig(alpha=tenths / 10)) for tenths in range(11))

    def a_row() -> Detections:
        count = int(torch.randint(20, 60, (), generator=generator))
        class_scores, scores, ious = torch.rand(3, count, generator=generator)
        return Detections(
            boxes=torch.rand(count, 4, generator=generator) * 800,
            scores=scores.sort(descending=True).values,
            labels=torch.randint(0, COCO_CLASSES, (count,), generator=generator),
            class_scores=class_scores,
            ious=ious,
            anchor_index=torch.zeros(count, dtype=torch.int64),
        )

    def write_and_read(images: int) -> None:
        header = PartHeader(StoreIdentity("data", "weights", 800, 1333), images, COCO_CLASSES, True, rows)
        with tempfile.TemporaryDirectory() as text:
            part = next_part(Path(text) / "store")
            with PartWriter(part, header) as writer:
                for image in range(images):
                    writer.add(ImageRows(image, FULL_SIZE, [a_row() for _ in rows]))
            publish_part(part)
            for group in CandidateStore.open(part.parent).groups(rows[0].scoring):
                del group

    start = _resident()
    write_and_read(few)
    return [
        (_largest_size(lambda: write_and_read(4 * few)) - start, _largest_size(lambda: write_and_read(few)) - start)
        for _ in range(repeats)
    ]


def _peak_on_gpu(work: Callable[[], None]) -> float:
    """Bytes allocated at the peak of `work` beyond those that are allocated before."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    work()
    torch.cuda.synchronize()
    return float(torch.cuda.max_memory_allocated() - before)


def _peak_on_cpu(work: Callable[[], None]) -> float:
    """As on a GPU, from the profiler's record of allocations."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    changes = sorted((e["ts"], e["args"]["Bytes"]) for e in events if e.get("name") == "[memory]")
    return float(max(accumulate(change for _, change in changes), default=0))


def _largest_size(work: Callable[[], None]) -> float:
    """Bytes that this process has in memory at the peak of `work`."""
    Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark to the present size
    work()
    return _field("VmHWM")


def _resident() -> float:
    return _field("VmRSS")


def _field(name: str) -> float:
    """A size in /proc/self/status, in bytes."""
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return float(line.split()[1]) * 1024
