"""N8: a run that is started again with another spec is refused, field by field, unless no weight changes with it."""

from dataclasses import replace

import pytest

from detector.errors import ConfigError
from runyard.runs.prepare import prepare
from runyard.spec import ExperimentSpec


@pytest.mark.parametrize(
    ("part", "change", "difference"),
    [
        ("model", {"iou_head": False}, "model.iou_head: True -> False"),
        ("loss", {"iou_loss": "l2"}, "loss.iou_loss: 'bce' -> 'l2'"),
        ("optim", {"learning_rate": 0.02}, "optim.learning_rate: 0.01 -> 0.02"),
        ("data", {"flip_probability": 0.0}, "data.flip_probability: 0.5 -> 0.0"),
        (None, {"seed": 1}, "seed: 0 -> 1"),
    ],
    ids=["model", "loss", "optim", "data", "seed"],
)
def test_N8_another_training_in_the_same_folder_is_refused_field_by_field(
    tiny_spec: ExperimentSpec, part: str | None, change: dict, difference: str
) -> None:
    folder = prepare(tiny_spec).folder
    before = folder.spec.read_text()
    changed = replace(tiny_spec, **(change if part is None else {part: replace(getattr(tiny_spec, part), **change)}))
    with pytest.raises(ConfigError) as refused:
        prepare(changed)
    assert str(refused.value) == f"{folder.root}: holds another run: {difference}. Use another name or --storage"
    assert folder.spec.read_text() == before


def test_N8_all_differences_are_told_at_once(tiny_spec: ExperimentSpec) -> None:
    prepare(tiny_spec)
    optim = replace(tiny_spec.optim, epochs=9, batch_size=16)
    with pytest.raises(ConfigError, match=r"optim\.batch_size: 4 -> 16; optim\.epochs: 2 -> 9; seed: 0 -> 5\."):
        prepare(replace(tiny_spec, optim=optim, seed=5))


def test_N8_workers_loaders_and_places_may_change(tiny_spec: ExperimentSpec) -> None:
    prepare(tiny_spec)
    runtime = replace(
        tiny_spec.runtime, workers=8, accumulation=2, loader_workers=4, channels_last=False, max_failures=9
    )
    assert prepare(replace(tiny_spec, runtime=runtime)).resumed
