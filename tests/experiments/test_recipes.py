"""The recipe of the second detector."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

from detector.config import TorchvisionRetinaNetConfig
from runyard.spec import from_dict, to_dict

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def recipes(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    monkeypatch.delitem(sys.modules, "recipes", raising=False)
    return importlib.import_module("recipes")


def test_the_second_detector_has_a_recipe_that_can_be_written_and_read(recipes: ModuleType) -> None:
    spec = recipes.torchvision()
    assert isinstance(spec.model, TorchvisionRetinaNetConfig)
    assert spec.scoring.confidence == "class"
    assert spec.optim.scaled_learning_rate == 0.01
    assert from_dict(to_dict(spec)) == spec


def test_its_smoke_run_is_from_scratch_and_small(recipes: ModuleType) -> None:
    tiny = recipes.smoke(recipes.torchvision())
    assert tiny.model == TorchvisionRetinaNetConfig(weights="none")
    assert (tiny.data.short_side_px, tiny.data.train_limit) == (96, 32)
    assert recipes.smoke(recipes.table1("r50-iou")).model.backbone.name == "resnet18"
