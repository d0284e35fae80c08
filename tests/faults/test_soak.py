"""A run that is killed fifty times, at random steps and at random moments between them, is the run never killed."""

import os
import random
import signal
import time
from dataclasses import replace

import pytest

from runyard.spec import ExperimentSpec

KILLS, EPOCHS = 50, 30


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_fifty_kills_change_nothing(runs, last_step, events, tiny_spec: ExperimentSpec) -> None:
    never_killed = replace(tiny_spec, optim=replace(tiny_spec.optim, epochs=EPOCHS))
    expected = runs.finish(replace(never_killed, runtime=replace(tiny_spec.runtime, name="never-killed")))
    runtime = replace(tiny_spec.runtime, checkpoint_every_steps=1, loader_workers=1, evaluate_every_epochs=5)
    spec = replace(never_killed, runtime=runtime)
    folder = runs.folder(spec)
    chance = random.Random(0)
    killed_at: list[int] = []
    while len(killed_at) < KILLS:
        process = runs.start(spec)
        before = last_step(folder)
        # Mostly one step further than the life before, so that fifty lives fit into the run; some see no new step.
        further = chance.choice([0, 1, 1, 1])
        while process.is_alive() and last_step(folder) < before + further:
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.6))
        assert process.is_alive(), f"the run ended after {len(killed_at)} kills"
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        killed_at.append(last_step(folder))
    print("killed after steps", killed_at)
    runs.finish(spec).assert_equal(expected)
    assert len(events(folder, "start")) > KILLS / 2
