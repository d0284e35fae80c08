"""B3: a difference to a baseline stands only where both saw the same training and evaluated images."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from runyard.grid import Trial
from runyard.reports.rows import TableRow, baseline_of, rows_of, why_no_baseline
from runyard.runs.prepare import prepare
from runyard.scoring.results import TrialResult
from runyard.spec import ExperimentSpec


def fewer_boxes(data: Path) -> None:
    edit(data / "annotations" / "instances_train.json", lambda content: content["annotations"].pop())


def other_areas(data: Path) -> None:
    edit(data / "annotations" / "instances_val.json", lambda content: content["annotations"][0].update(area=1.0))


def other_pixels(data: Path) -> None:
    path = min((data / "val").iterdir())
    with Image.open(path) as image:
        image.convert("L").convert("RGB").save(path, quality=30)


def edit(path: Path, change: Callable[[Mapping[str, list[dict[str, object]]]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def table_rows(specs: Mapping[str, ExperimentSpec]) -> dict[str, TableRow]:
    """Rows of runs that are begun with their real data, and have one metric."""
    results = []
    for row, spec in specs.items():
        prepared = prepare(spec)
        results.append(TrialResult(Trial(prepared.spec, row), prepared.folder, {"val/AP": 0.1}))
    return {row.row: row for row in rows_of(results)}


@pytest.fixture
def pair(rows: dict[str, ExperimentSpec], tiny_data: Path, tmp_path: Path) -> dict[str, ExperimentSpec]:
    """A baseline, and a row that has a copy of the data set."""
    copy = shutil.copytree(tiny_data, tmp_path / "copy" / tiny_data.name)
    none = rows["none"]
    return {"baseline": rows["baseline"], "none": replace(none, source=replace(none.source, data=copy))}


def test_B3_a_copy_of_the_same_data_has_its_baseline(pair: dict[str, ExperimentSpec]) -> None:
    found = table_rows(pair)
    assert baseline_of(found["none"], list(found.values())) is found["baseline"]
    assert why_no_baseline(found["none"], list(found.values())) is None


@pytest.mark.parametrize(
    ("change", "images"),
    [(fewer_boxes, "training"), (other_areas, "evaluated"), (other_pixels, "evaluated")],
)
def test_B3_other_data_has_no_baseline_and_says_why(
    pair: dict[str, ExperimentSpec], change: Callable[[Path], None], images: str
) -> None:
    data = pair["none"].source.data
    assert data is not None
    change(data)
    found = table_rows(pair)
    rows = list(found.values())
    assert baseline_of(found["none"], rows) is None
    assert why_no_baseline(found["none"], rows) == f"no baseline with the same {images} images"


def test_B3_fewer_training_images_are_named_as_the_setting_that_differs(rows: dict[str, ExperimentSpec]) -> None:
    none = rows["none"]
    few = replace(none, data=replace(none.data, train_limit=6))
    found = table_rows({"baseline": rows["baseline"], "none": few})
    assert baseline_of(found["none"], list(found.values())) is None
    assert why_no_baseline(found["none"], list(found.values())) == "no baseline with the same data.train_limit"
