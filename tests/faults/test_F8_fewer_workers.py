"""F8: two workers begin, one goes on: same images, same learning rate, same result up to rounding, and a warning."""

import signal
from dataclasses import replace

import pytest
import torch

from runyard.spec import ExperimentSpec


def test_F8_one_worker_goes_on_where_two_were_killed(
    runs, wait_until, last_step, events, tiny_spec: ExperimentSpec
) -> None:
    spec = replace(tiny_spec, runtime=replace(tiny_spec.runtime, checkpoint_every_steps=2))
    folder = runs.folder(spec)
    processes = runs.ranks(spec)
    wait_until(lambda: last_step(folder) >= 3 or processes[0].poll() is not None)
    for process in processes:
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    resumed = runs.finish(spec)
    alone = runs.finish(replace(spec, runtime=replace(spec.runtime, name="alone")))
    (warning,) = events(folder, "warning")
    assert "written by 2 worker(s), 1 go on" in warning.payload["message"]
    for name, curve in alone.curves.items():
        assert [step for step, _ in resumed.curves[name]] == [step for step, _ in curve]
        assert [value for _, value in resumed.curves[name]] == pytest.approx([value for _, value in curve], rel=1e-3)
    assert resumed.curves["learning_rate"] == alone.curves["learning_rate"]
    for name, tensor in alone.tensors.items():
        if name.startswith("model."):
            torch.testing.assert_close(resumed.tensors[name], tensor, rtol=1e-3, atol=1e-4, msg=name)
