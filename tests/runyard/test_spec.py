"""The spec's round trip, its errors and its two hashes."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from detector.config import BackboneConfig, DataConfig, LossConfig, OptimConfig, RetinaNetConfig, ScoringConfig
from detector.config.fields import flatten
from detector.errors import ConfigError
from runyard.spec import ExperimentSpec, RuntimeConfig, SourceConfig, from_dict, to_dict
from runyard.spec.identity import differences

ROOT = Path(__file__).resolve().parents[2]


def test_a_spec_survives_json() -> None:
    spec = ExperimentSpec(
        recipe="x",
        model=RetinaNetConfig(backbone=BackboneConfig(name="resnet101")),
        data=DataConfig(classes=("a", "b")),
        source=SourceConfig(data=Path("/data/coco")),
        runtime=RuntimeConfig(workers=4),
    )
    assert from_dict(json.loads(json.dumps(to_dict(spec)))) == spec


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"modell": {}}, "spec.modell: unknown key"),
        ({"model": {"backbone": {"depth": 50}}}, "spec.model.backbone.depth: unknown key"),
        ({"model": {"__class__": "os.system"}}, "spec.model.__class__: unknown key"),
        ({"model": []}, "spec.model: expected one of RetinaNetConfig, TorchvisionRetinaNetConfig (found 'list')"),
        ({"optim": {"batch_size": "16"}}, "spec.optim.batch_size: expected a value of type int"),
        ({"optim": {"batch_size": True}}, "spec.optim.batch_size: expected a value of type int"),
        ({"runtime": {"workers": 2, "min_workers": 3}}, "runtime.min_workers: expected 1 to runtime.workers"),
        ({"optim": {"batch_size": 0}}, "optim.batch_size: expected at least 1"),
        ({"loss": {"iou_loss": "huber"}}, "spec.loss.iou_loss: expected one of 'bce', 'l2', 'l1'"),
        ({"loss": {"focal_gamma": 10**400}}, "spec.loss.focal_gamma: is too large for a number"),
        ({"scoring": {"alpha": 1.5}}, "scoring.alpha: expected a number from 0 to 1"),
        ({"scoring": {"alpha": float("nan")}}, "scoring.alpha: expected a number from 0 to 1"),
        ({"optim": {"milestones": 8}}, "spec.optim.milestones: expected a list"),
        ({"data": {"classes": [1]}}, "spec.data.classes[0]: expected a value of type str"),
    ],
)
def test_what_cannot_be_a_spec_is_named(tree: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_dict(tree)
    assert message in str(caught.value)


def test_the_training_hash_covers_what_shapes_the_weights() -> None:
    spec = ExperimentSpec()
    same = [
        replace(spec, recipe="other"),
        replace(spec, scoring=ScoringConfig(alpha=0.3)),
        replace(spec, protocol="voc"),
        replace(spec, runtime=RuntimeConfig(workers=8, accumulation=2, storage=Path("/x"))),
        replace(spec, source=SourceConfig(data=Path("/elsewhere"))),
        replace(spec, data=DataConfig(val_split="test", val_limit=3)),
    ]
    different = [
        replace(spec, seed=1),
        replace(spec, model=RetinaNetConfig(iou_head=False)),
        replace(spec, loss=LossConfig(iou_loss="l2")),
        replace(spec, optim=OptimConfig(epochs=1)),
        replace(spec, data=DataConfig(train_limit=3)),
    ]
    assert {other.training_hash for other in same} == {spec.training_hash}
    assert len({other.training_hash for other in different} | {spec.training_hash}) == len(different) + 1


def test_the_baseline_does_not_depend_on_the_head_it_lacks() -> None:
    baseline = ExperimentSpec(model=RetinaNetConfig(iou_head=False))
    other = replace(baseline, loss=LossConfig(iou_loss="l2"), scoring=ScoringConfig(alpha=0.1))
    assert other.training_hash == baseline.training_hash
    assert other.scoring_hash == baseline.scoring_hash


@pytest.mark.parametrize(
    "loss", [LossConfig(iou_loss="l1"), LossConfig(iou_weight=2.0), LossConfig(iou_target_gradient=True)]
)
def test_no_option_of_the_iou_loss_counts_without_the_head(loss: LossConfig) -> None:
    spec = ExperimentSpec()
    baseline = replace(spec, model=RetinaNetConfig(iou_head=False))
    assert replace(spec, loss=loss).training_hash != spec.training_hash
    assert replace(baseline, loss=loss).training_hash == baseline.training_hash


def test_the_scoring_hash_covers_what_shapes_the_numbers() -> None:
    spec = ExperimentSpec()
    none = replace(spec, scoring=ScoringConfig(confidence="none"))
    assert replace(none, scoring=ScoringConfig(confidence="none", alpha=0.1)).scoring_hash == none.scoring_hash
    others = [none, replace(spec, scoring=ScoringConfig(top_k=10)), replace(spec, data=DataConfig(val_limit=3))]
    assert len({other.scoring_hash for other in others} | {spec.scoring_hash}) == 4
    assert replace(spec, seed=3).scoring_hash == spec.scoring_hash


def test_differences_name_the_fields_of_the_training_identity() -> None:
    spec = ExperimentSpec()
    other = replace(spec, seed=2, optim=OptimConfig(epochs=3), runtime=RuntimeConfig(workers=2))
    assert differences(spec, other) == ["optim.epochs: 12 -> 3", "seed: 0 -> 2"]


def test_flatten_joins_names_with_dots() -> None:
    assert flatten({"a": {"b": 1, "c": {"d": None}}, "e": [2]}) == {"a.b": 1, "a.c.d": None, "e": [2]}


def test_specs_and_recipes_need_no_torch() -> None:
    code = (
        "import sys; sys.path[:0] = ['platform', '.', 'experiments']\n"
        "import recipes, runyard.spec, runyard.commandline.main, runyard.commandline.command, runyard.cli\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0
