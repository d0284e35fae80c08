"""A run killed at any step and started again is the run that was never killed, bit for bit on a CPU."""

from dataclasses import replace

import pytest

from runyard.runs.prepare import prepare
from runyard.spec import ExperimentSpec
from runyard.tracking.journal import effective_metrics
from runyard.training import worker
from runyard.training.local import LocalContext


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


def test_an_evaluation_that_was_interrupted_is_made_up_for(
    tiny_spec: ExperimentSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = prepare(replace(tiny_spec, runtime=replace(tiny_spec.runtime, evaluate_every_epochs=1)))

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(worker, "score_detections", interrupted)
        with pytest.raises(KeyboardInterrupt):
            worker.train(prepared.spec, prepared.folder, LocalContext(use_gpu=False))
    worker.train(prepared.spec, prepared.folder, LocalContext(use_gpu=False))
    assert [step for step, _ in effective_metrics(prepared.folder.journal)["val/AP"]] == [3, 6]
