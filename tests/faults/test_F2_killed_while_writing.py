"""F2: SIGKILL while a checkpoint is being written: the one before it is used, and nothing half written stays."""

import os
import signal
from dataclasses import replace

from runyard.spec import ExperimentSpec


def test_F2_a_run_killed_inside_a_checkpoint_goes_on_from_the_one_before(
    runs, wait_until, tiny_spec: ExperimentSpec
) -> None:
    expected = runs.finish(replace(tiny_spec, runtime=replace(tiny_spec.runtime, name="never-killed")))
    spec = replace(tiny_spec, runtime=replace(tiny_spec.runtime, checkpoint_every_steps=2))
    folder = runs.folder(spec)
    process = runs.start(spec)
    wait_until(lambda: any(folder.root.glob(".checkpoint-000000004.*.partial/*")) or not process.is_alive())
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert any(folder.root.glob(".checkpoint-000000004.*.partial")), "the kill came too late to tear the checkpoint"
    assert [path.name for path in folder.checkpoints()] == ["checkpoint-000000003", "checkpoint-000000002"]
    runs.finish(spec).assert_equal(expected)
    assert not list(folder.root.glob(".checkpoint*"))
