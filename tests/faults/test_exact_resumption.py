"""A run killed at any step and started again is the run that was never killed, bit for bit on a CPU."""

from dataclasses import replace

import pytest

from runyard.spec import ExperimentSpec


@pytest.mark.parametrize(
    ("optim", "runtime"),
    [
        pytest.param({}, {}, id="sgd, a checkpoint at the epoch's end"),
        pytest.param({}, {"checkpoint_every_steps": 2, "accumulation": 2}, id="sgd, mid-epoch, accumulation"),
        pytest.param(
            {"optimizer": "adamw", "learning_rate": 1e-3},
            {"checkpoint_every_steps": 2, "loader_workers": 1},
            id="adamw, mid-epoch, loader worker",
        ),
    ],
)
def test_a_run_killed_twice_equals_one_never_killed(runs, tiny_spec: ExperimentSpec, optim, runtime) -> None:
    spec = replace(tiny_spec, optim=replace(tiny_spec.optim, **optim), runtime=replace(tiny_spec.runtime, **runtime))
    expected = runs.finish(replace(spec, runtime=replace(spec.runtime, name="never-killed")))
    assert [step for step, _ in expected.curves["loss"]] == list(range(1, 7))
    runs.kill_after_step(spec, 2)
    runs.kill_after_step(spec, 5)
    runs.finish(spec).assert_equal(expected)
