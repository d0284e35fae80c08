"""N1: a loss that is not finite, on one rank or on all: no rank applies it, all stop, the failing step is kept."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from detector.data.epoch_plan import aspect_groups, epoch_batches, trainable_images
from detector.data.formats import open_dataset
from runyard.failures import NonFiniteLossError
from runyard.runs.prepare import prepare
from runyard.spec import ExperimentSpec
from runyard.tracking.journal import effective_metrics, last_status, read
from runyard.tracking.outcome import journaled
from runyard.training.launch import launch

POISONED = Path(__file__).with_name("poisoned_rank.py")


def test_N1_one_rank_s_nan_stops_both_at_the_last_good_weights(
    runs, events, tiny_spec: ExperimentSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Step 5 is the second of the second epoch, and none that is logged.
    spec = replace(tiny_spec, runtime=replace(tiny_spec.runtime, log_every_steps=4))
    monkeypatch.setenv("POISON_RANK", "1")
    monkeypatch.setenv("POISON_STEP", "5")
    processes = runs.ranks(spec, script=POISONED)
    for process in processes:
        output, _ = process.communicate(timeout=200)
        assert process.returncode == 1, output
        assert "error: the loss is not finite at step 5" in output
    folder = runs.folder(spec)
    (event,) = events(folder, "non_finite")
    assert event.payload["step"] == 5
    assert event.payload["loss_box"] == "nan"
    assert event.payload["loss_cls"] > 0
    assert event.payload["image_ids"] == global_batch(spec, step=5)
    assert "nan" not in str(effective_metrics(folder.journal))

    # What is left is good: the run goes on from it once the cause is gone, and ends as if it had never failed.
    assert [path.name for path in folder.checkpoints()] == ["checkpoint-000000003"]
    kept = load_file(folder.checkpoints()[0] / "tensors.safetensors")
    assert all(tensor.isfinite().all() for tensor in kept.values())
    never_failed = replace(spec, runtime=replace(spec.runtime, name="never-failed"))
    for each in (spec, never_failed):
        for process in runs.ranks(each):
            output, _ = process.communicate(timeout=200)
            assert process.returncode == 0, output
    tensors = [load_file(runs.folder(each).checkpoints()[0] / "tensors.safetensors") for each in (spec, never_failed)]
    assert all(torch.equal(tensor, tensors[1][name]) for name, tensor in tensors[0].items())


def global_batch(spec: ExperimentSpec, step: int) -> list[str]:
    assert spec.source.data is not None
    dataset = open_dataset(spec.source.data, "train")
    images = trainable_images(dataset, spec.data)
    groups = aspect_groups(dataset, images, spec.data)
    epoch, position = divmod(step - 1, 3)
    batch = images[epoch_batches(groups, spec.optim.batch_size, spec.seed, epoch)[position]]
    return [str(dataset.image_ids[i]) for i in batch]


def test_N1_a_learning_rate_that_explodes_ends_as_failed(tiny_spec: ExperimentSpec) -> None:
    spec = replace(tiny_spec, optim=replace(tiny_spec.optim, learning_rate=1e30, clip_norm=0.0))
    prepared = prepare(spec)
    journal = prepared.folder.journal
    with pytest.raises(NonFiniteLossError, match=r"the loss is not finite at step 2 "), journaled(journal, spec):
        launch(prepared.spec, prepared.folder, "local")
    assert last_status(journal) == "FAILED"
    steps = [record.payload["step"] for record in read(journal) if record.kind == "metrics"]
    assert steps == [1]
    assert prepared.folder.checkpoints() == []


def test_N1_weights_that_are_not_finite_never_become_a_checkpoint(tiny_spec: ExperimentSpec) -> None:
    # One step an epoch: its loss and gradient are good, the weights it makes are not.
    spec = replace(
        tiny_spec,
        optim=replace(tiny_spec.optim, learning_rate=3e38, reference_batch_size=4, warmup_steps=0, clip_norm=0.0),
        data=replace(tiny_spec.data, train_limit=4),
    )
    prepared = prepare(spec)
    with pytest.raises(NonFiniteLossError, match="the weights are not finite after step 1"):
        launch(prepared.spec, prepared.folder, "local")
    assert prepared.folder.checkpoints() == []
