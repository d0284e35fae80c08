"""A run killed fifty times, at random steps and inside of checkpoints and evaluations, is the run never killed."""

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest

from runyard.runs.folder import RunFolder
from runyard.spec import ExperimentSpec
from runyard.tracking.journal import effective_metrics, read

KILLS, EPOCHS, STEPS_AN_EPOCH = 50, 30, 3


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_fifty_kills_change_nothing(runs, last_step, events, tiny_spec: ExperimentSpec) -> None:
    began = time.monotonic()
    runtime = replace(tiny_spec.runtime, checkpoint_every_steps=1, loader_workers=1, evaluate_every_epochs=1)
    spec = replace(tiny_spec, optim=replace(tiny_spec.optim, epochs=EPOCHS), runtime=runtime)
    never_killed = replace(spec, runtime=replace(runtime, name="never-killed"))
    expected = runs.finish(never_killed)
    folder = runs.folder(spec)
    chance = random.Random(0)
    # A third of the lives sees no new step: they are killed while they start.
    targets = sorted(chance.choices(range(1, STEPS_AN_EPOCH * (EPOCHS - 2)), k=KILLS))
    hit: Counter[str] = Counter()
    for target in targets:
        process = runs.start(spec)
        moment, aim = chance.uniform(0, 1), chance.choice(["anywhere", "anywhere", "checkpoint", "evaluation"])
        lives = len(events(folder, "start"))
        if last_step(folder) >= target and aim == "anywhere":
            time.sleep(3 * moment)
        else:
            reached = {
                "anywhere": lambda target=target: last_step(folder) >= target,
                "checkpoint": lambda target=target: half_written(folder) >= target,
                "evaluation": lambda target=target: evaluating(folder) >= target,
            }[aim]
            while process.is_alive() and not reached():
                time.sleep(0.003)
            time.sleep(moment * (0.5 if aim == "anywhere" else 0.1))
        assert process.is_alive(), f"the run ended before kill {hit.total() + 1}, aimed at step {target}"
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        hit[where(folder, lives, events)] += 1
    print(f"{KILLS} kills after steps {targets}: {dict(hit)}; {time.monotonic() - began:.0f} s")
    runs.finish(spec).assert_equal(expected)
    assert min(hit[place] for place in ("starting", "a step", "a checkpoint", "an evaluation")) > 0
    curves, others = effective_metrics(folder.journal), effective_metrics(runs.folder(never_killed).journal)
    assert curves["val/AP"] == others["val/AP"]
    print(f"{time.monotonic() - began:.0f} s")


def half_written(folder: RunFolder) -> int:
    """The step of a checkpoint that is being written; 0 without one."""
    partial = [path.name.split("-")[1].partition(".")[0] for path in folder.root.glob(".checkpoint-*.partial")]
    return max((int(step) for step in partial), default=0)


def evaluating(folder: RunFolder) -> int:
    """The step of an epoch's end whose checkpoint is there and whose metrics are not; 0 without one."""
    step = max((int(path.name.rpartition("-")[2]) for path in folder.checkpoints()), default=0)
    evaluated = {
        record.payload["step"] for record in read(folder.journal) if "val/AP" in record.payload.get("values", ())
    }
    return step if step % STEPS_AN_EPOCH == 0 and step not in evaluated else 0


def where(folder: RunFolder, lives: int, events: Callable[[RunFolder, str], list]) -> str:  # type: ignore[type-arg]
    """The phase in which a process was killed."""
    if len(events(folder, "start")) == lives:
        return "starting"
    if half_written(folder):
        return "a checkpoint"
    return "an evaluation" if evaluating(folder) else "a step"
