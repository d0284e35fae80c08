"""B4, B7, B10, B11: identity follows from the fields' metadata, from canonical values, and from nothing else."""

import dataclasses
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from detector.config import (
    BackboneConfig,
    DataConfig,
    LossConfig,
    OptimConfig,
    RetinaNetConfig,
    ScoringConfig,
    TorchvisionRetinaNetConfig,
)
from detector.config.fields import identity
from detector.errors import ConfigError
from runyard.spec import ExperimentSpec, RuntimeConfig, from_dict, to_dict
from runyard.spec.identity import ALL_PARTS, baseline_setting_of, differences, identity_of, setting_of

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "identities.json"
"""Hashes of specifications of today. They change only with a default or with the way of hashing, which orphans runs."""

SPECS: dict[str, ExperimentSpec] = {
    "default": ExperimentSpec(),
    "baseline": ExperimentSpec(model=RetinaNetConfig(iou_head=False)),
    "from scratch": ExperimentSpec(
        model=RetinaNetConfig(backbone=BackboneConfig(name="resnet18", weights="none"), fpn_channels=64),
        loss=LossConfig(iou_loss="l2"),
        optim=OptimConfig(optimizer="adamw", learning_rate=5e-4, epochs=4, milestones=(3,)),
        data=DataConfig(short_side_px=96, long_side_px=96, val_limit=7, classes=("a", "b")),
        scoring=ScoringConfig(alpha=0.3),
        protocol="voc",
        seed=5,
    ),
    "per device": ExperimentSpec(loss=LossConfig(normaliser="per_device"), runtime=RuntimeConfig(workers=8)),
    "torchvision": ExperimentSpec(model=TorchvisionRetinaNetConfig(trainable_layers=2)),
}


@pytest.mark.parametrize("workers", [{"workers": 8}, {"accumulation": 2}])
@pytest.mark.parametrize(
    "change",
    [{"loss": LossConfig(normaliser="per_device")}, {"model": RetinaNetConfig(backbone=BackboneConfig(norm="batch"))}],
    ids=["per_device", "batch"],
)
def test_B4_workers_count_where_they_change_results(change: dict[str, Any], workers: dict[str, int]) -> None:
    one = replace(ExperimentSpec(), **change)
    several = replace(one, runtime=RuntimeConfig(**workers))
    assert one.training_hash != several.training_hash
    assert differences(one, several) == [f"runtime.{name}: 1 -> {value}" for name, value in workers.items()]
    plain = ExperimentSpec(runtime=RuntimeConfig(**workers))
    assert plain.training_hash == ExperimentSpec().training_hash


def test_B4_an_elastic_number_of_workers_is_refused_where_it_would_change_results() -> None:
    runtime = RuntimeConfig(workers=4, min_workers=2)
    ExperimentSpec(runtime=runtime)
    with pytest.raises(ConfigError, match=r"runtime\.min_workers: an elastic number of workers would change"):
        ExperimentSpec(loss=LossConfig(normaliser="per_device"), runtime=runtime)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (OptimConfig(weight_decay=0), OptimConfig(weight_decay=0.0)),
        (OptimConfig(clip_norm=35), OptimConfig()),
        (OptimConfig(milestones=[8, 11]), OptimConfig()),  # type: ignore[arg-type]
        (OptimConfig(weight_decay=-0.0), OptimConfig(weight_decay=0.0)),
    ],
    ids=["zero", "thirty-five", "a list", "minus zero"],
)
def test_B7_values_have_one_form(written: OptimConfig, meant: OptimConfig) -> None:
    spec = ExperimentSpec(optim=written)
    assert spec == ExperimentSpec(optim=meant)
    assert spec.training_hash == ExperimentSpec(optim=meant).training_hash
    assert from_dict(json.loads(json.dumps(to_dict(spec)))).training_hash == spec.training_hash


def test_B7_an_integer_alpha_is_the_same_evaluation_before_and_after_the_file() -> None:
    spec = ExperimentSpec(scoring=ScoringConfig(alpha=1))
    read = from_dict(json.loads(json.dumps(to_dict(spec))))
    assert (read, read.scoring_hash) == (spec, spec.scoring_hash)
    assert json.dumps(to_dict(spec)) == json.dumps(to_dict(read))


def test_B10_a_new_field_with_its_default_changes_no_hash() -> None:
    @dataclass(frozen=True)
    class GrownLoss(LossConfig):
        quality: float = 1.0

    @dataclass(frozen=True)
    class Grown(ExperimentSpec):
        loss: GrownLoss = field(default_factory=GrownLoss, metadata=identity("training"))

    for spec in (ExperimentSpec(), ExperimentSpec(seed=3, optim=OptimConfig(epochs=6))):
        values = {f.name: getattr(spec, f.name) for f in dataclasses.fields(spec) if f.name != "loss"}
        grown = Grown(**values)
        assert (grown.training_hash, grown.scoring_hash) == (spec.training_hash, spec.scoring_hash)
        assert Grown(**values, loss=GrownLoss(quality=2.0)).training_hash != spec.training_hash


def test_B10_a_field_of_the_head_does_not_separate_a_baseline_from_its_rows() -> None:
    """Whatever field of the head comes next: its metadata says that it is one, no list has to name it."""
    iou = ExperimentSpec(loss=LossConfig(iou_loss="l1", iou_weight=3.0), scoring=ScoringConfig(confidence="none"))
    baseline = replace(iou, model=RetinaNetConfig(iou_head=False), scoring=ScoringConfig(alpha=0.1))
    assert baseline_setting_of(iou) == baseline_setting_of(baseline)
    assert setting_of(baseline) == {"model.iou_head": False}
    assert baseline_setting_of(replace(iou, optim=OptimConfig(epochs=6))) != baseline_setting_of(baseline)


def test_B10_golden_identities() -> None:
    golden = json.loads(GOLDEN.read_text())
    found = {
        name: {"training": spec.training_hash, "validation": spec.validation_hash, "evaluation": spec.scoring_hash}
        for name, spec in SPECS.items()
    }
    assert found == golden["hashes"], (
        "an identity has changed: every run that has it is orphaned. If that is meant, raise the storage format, say "
        "why in CHANGELOG.md, and write the new values"
    )
    assert identity_of(SPECS["from scratch"], *ALL_PARTS) == golden["fields of 'from scratch'"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LossConfig(iou_loss="giou"), "loss.iou_loss: expected one of 'bce', 'l2', 'l1' (found 'giou')"),
        (lambda: OptimConfig(optimizer="lion"), "optim.optimizer: expected one of 'sgd', 'adamw' (found 'lion')"),
        (lambda: OptimConfig(precision="float16"), "optim.precision: expected one of"),
        (lambda: ScoringConfig(confidence="None"), "scoring.confidence: expected one of"),
        (lambda: BackboneConfig(name="resnet152"), "backbone.name: expected one of"),
        (lambda: ExperimentSpec(protocol="voc07"), "spec.protocol: expected one of"),
        (lambda: OptimConfig(epochs=True), "optim.epochs: expected a value of type int"),
        (lambda: OptimConfig(learning_rate="0.1"), "optim.learning_rate: expected a value of type float"),
    ],
)
def test_B11_words_and_types_are_checked_on_construction(make: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert message in str(caught.value)
