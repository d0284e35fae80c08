"""P4: a Ray Train worker against the plain-torch launcher: the same training loop, block by block in turn.

Two processes that do the same differ for as long as they live, by up to 4 % where it was measured (`NOTES.md`): many
blocks of one pair of processes would measure that pair, and call it Ray. So every pair of processes gives a single
value, and there are many pairs.
"""

import multiprocessing
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.pacing import Pace, train_paced
from benchmarks.rows import AnyRow, NotRun, Row
from benchmarks.settings import Settings
from benchmarks.small_run import named, small_spec
from benchmarks.timing import interleaved
from runyard.runs.prepare import PreparedRun, prepare

BATCH_SIZE = 8
STEPS = 4
"""Of a block."""


def measure(settings: Settings) -> list[AnyRow]:
    """P4."""
    pairs, blocks, side = (1, 2, 64) if settings.quick else (16, 6, 256 if settings.on_gpu else 128)
    ours, other = zip(*(_one_pair(blocks, side) for _ in range(pairs)), strict=True)
    size = f"ResNet-18, {BATCH_SIZE} x {side}x{side}, {'GPU' if settings.on_gpu else 'CPU'}; {pairs} pairs of processes"
    rows: list[AnyRow] = [
        Row(
            key="P4",
            what="Ray Train worker against the plain launcher",
            size=settings.describe(size, full=True),
            kind="overhead",
            unit="s",
            ours=ours,
            other=other,
            other_name="plain launcher",
            goal=settings.goal(0.01, at_least=False),
            goal_text="at most 1 % of a step",
        )
    ]
    if not settings.on_gpu:
        rows.append(NotRun("P4", "Ray Train worker against the plain launcher, on a GPU", "needs a GPU"))
    return rows


def _one_pair(blocks: int, side_px: int) -> tuple[float, float]:
    """A worker and a plain process, both started anew: the median block's seconds a step of each."""
    warm_up = 1
    last = blocks + warm_up
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        # One block more, which is never timed: it ends when the run does.
        spec = small_spec(folder, steps=(last + 1) * STEPS, batch_size=BATCH_SIZE, side_px=side_px)
        processes = multiprocessing.get_context("spawn")
        loops = []
        for name, target in (("ray", _ray), ("plain", _plain)):
            pace = Pace(folder / f"pace-{name}", STEPS)
            pace.folder.mkdir()
            process = processes.Process(target=target, args=(prepare(named(spec, name)), pace), name=name)
            process.start()
            loops.append((pace, process))
        try:
            ours, other = interleaved(*(_next_block(*loop) for loop in loops), repeats=blocks, warm_up=warm_up)
            for pace, _ in loops:
                pace.go(last)
        finally:
            for _, process in loops:
                process.join(120)
                process.kill()
    return median(ours), median(other)


def _next_block(pace: Pace, process: Any) -> Any:
    """Measures the loop's next block, in seconds a step."""
    block = -1

    def measure_block() -> float:
        nonlocal block
        block += 1
        pace.go(block)
        return pace.took(block, failed=lambda: not process.is_alive())

    return measure_block


def _ray(prepared: PreparedRun, pace: Pace) -> None:
    from benchmarks.ray_paced import launch_paced

    launch_paced(prepared.spec, prepared.folder, pace)


def _plain(prepared: PreparedRun, pace: Pace) -> None:
    from runyard.training.local import LocalContext

    torch.set_num_threads(1)  # as Ray sets it for a worker with one CPU
    train_paced(prepared.spec, prepared.folder, LocalContext(), pace)
