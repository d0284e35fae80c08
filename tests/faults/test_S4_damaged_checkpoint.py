"""S4: the latest checkpoint is truncated, or a bit of it is flipped: the one before is used, and that is said."""

import shutil
from dataclasses import replace

import pytest

from runyard.spec import ExperimentSpec


@pytest.mark.parametrize("damage", ["truncated", "a bit flipped"])
def test_S4_a_damaged_latest_checkpoint_falls_back_one(runs, events, tiny_spec: ExperimentSpec, damage: str) -> None:
    spec = replace(tiny_spec, runtime=replace(tiny_spec.runtime, checkpoint_every_steps=2))
    runs.kill_after_step(spec, 5)
    folder = runs.folder(spec)
    assert folder.checkpoints()[0].name == "checkpoint-000000004"
    # The same run, undamaged, is what must come out.
    undamaged = replace(spec, runtime=replace(spec.runtime, name="undamaged"))
    shutil.copytree(folder.root, runs.folder(undamaged).root)
    with (folder.checkpoints()[0] / "tensors.safetensors").open("r+b") as file:
        if damage == "truncated":
            file.truncate(1_000_000)
        else:
            file.seek(50_000_000)
            byte = file.read(1)[0]
            file.seek(-1, 1)
            file.write(bytes([byte ^ 4]))
    runs.finish(spec).assert_equal(runs.finish(undamaged))
    (warning,) = events(folder, "warning")
    assert "checkpoint-000000004" in warning.payload["message"]
    assert "goes on from checkpoint-000000003" in warning.payload["message"]
