"""D11: a data set that was edited since a run has started is refused when that run is to go on."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from detector.errors import ConfigError
from runyard.runs.prepare import prepare
from runyard.spec import ExperimentSpec, SourceConfig


@pytest.fixture
def spec(tiny_spec: ExperimentSpec, tmp_path: Path) -> ExperimentSpec:
    """On a copy of the data that may be edited."""
    assert tiny_spec.source.data is not None
    copy = shutil.copytree(tiny_spec.source.data, tmp_path / "shapes")
    return replace(tiny_spec, source=SourceConfig(data=copy))


def edit_json(split: str, change: Callable[[dict], object]) -> Callable[[Path], None]:
    def edit(root: Path) -> None:
        path = root / "annotations" / f"instances_{split}.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return edit


def replace_image(root: Path) -> None:
    path = min((root / "train").iterdir())
    with Image.open(path) as image:
        size = image.size
    Image.new("RGB", size, (1, 2, 3)).save(path)


@pytest.mark.parametrize(
    ("edit", "split"),
    [
        (edit_json("train", lambda c: c["annotations"][0]["bbox"].__setitem__(0, 1.5)), "train"),
        (edit_json("train", lambda c: c["annotations"].pop()), "train"),
        (edit_json("train", lambda c: c["images"].reverse()), "train"),  # batches are drawn by position
        (edit_json("val", lambda c: c["annotations"].pop()), "val"),
        (replace_image, "train"),
    ],
    ids=["a box moved", "a box removed", "images in another order", "a validation box removed", "an image replaced"],
)
def test_D11_an_edited_data_set_is_refused(spec: ExperimentSpec, edit: Callable[[Path], None], split: str) -> None:
    folder = prepare(spec).folder
    before = folder.train_data.read_bytes()
    assert spec.source.data is not None
    edit(spec.source.data)
    with pytest.raises(ConfigError, match=rf"the data set has changed since this run started \({split}\)"):
        prepare(spec)
    assert folder.train_data.read_bytes() == before


def test_D11_another_name_starts_anew_on_the_edited_data(spec: ExperimentSpec) -> None:
    prepare(spec)
    assert spec.source.data is not None
    replace_image(spec.source.data)
    assert not prepare(replace(spec, runtime=replace(spec.runtime, name="anew"))).resumed
