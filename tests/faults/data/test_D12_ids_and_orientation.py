"""D12: ids from 0, floats for integers, unused super-categories, grey and turned photographs leave AP as it is."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detector.data.cache import load_dataset
from detector.evaluation.coco_ap import coco_average_precision
from detector.evaluation.results import DetectionTable
from runyard.cli import main
from runyard.spec import ExperimentSpec

BOX = [{"category_id": 1, "bbox": [10, 5, 30, 40]}]


def only_val_data(run: Path) -> Path:
    (path,) = run.glob("data/val-*.npz")
    return path


@pytest.fixture
def ordinary(data):
    data.val.add("second.png", boxes=BOX)
    return data


def as_metrics(train_on: Callable, spec: ExperimentSpec, name: str) -> dict[str, float]:
    metrics = train_on(replace(spec, runtime=replace(spec.runtime, name=name))).metrics
    return {key: value for key, value in metrics.items() if key != "val/images_per_s"}


@pytest.mark.parametrize("kind", [int, float])
def test_D12_ids_from_zero_and_floats_give_the_same_numbers(
    ordinary, spec_of: Callable, train_on: Callable, kind: type, tmp_path: Path
) -> None:
    expected = as_metrics(train_on, spec_of(ordinary), "ordinary")
    assert expected["val/detections"] > 0
    for split in (ordinary.train, ordinary.val):
        split.content["categories"] = [dict(c, id=kind(c["id"] - 1)) for c in split.content["categories"]]
        for image in split.content["images"]:
            image |= {key: kind(image[key]) for key in ("width", "height")} | {"id": kind(image["id"] - 1)}
        for annotation in split.content["annotations"]:
            annotation |= {key: kind(annotation[key] - 1) for key in ("id", "image_id", "category_id")}
            annotation["iscrowd"] = kind(0)
    assert as_metrics(train_on, spec_of(ordinary), "from-zero") == expected
    val = load_dataset(only_val_data(tmp_path / "runs" / "from-zero"))
    perfect = DetectionTable(np.arange(2), val.labels, val.boxes_xywh, np.array([0.9, 0.8]))
    for backend in ("hotcoco", "pycocotools"):  # which takes a match with annotation id 0 for none
        assert coco_average_precision(val, perfect, backend=backend).summary["AP"] == pytest.approx(1.0)


def test_D12_an_unused_supercategory_is_no_class_and_the_classes_are_stated(
    data, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in (data.train, data.val):
        animals = {"id": 0, "name": "animals", "supercategory": "none"}
        split.content["categories"] = [
            animals, *({**category, "supercategory": "animals"} for category in split.content["categories"]),
        ]  # fmt: skip
    assert main(["doctor", "--data", str(data.write()), "--storage", str(tmp_path / "runs")]) == 0
    assert capsys.readouterr().out.count("classes 'cat', 'dog'\n") == 2


def test_D12_grey_and_turned_photographs_are_what_they_show(
    data, spec_of: Callable, train_on: Callable, picture: Callable[..., Image.Image], tmp_path: Path
) -> None:
    """PNG keeps every pixel, so a turned or grey file must give the same numbers as a plain one, bit for bit."""
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees, clockwise
    upright, grey = picture(48, 64, seed=3), picture(seed=4).convert("L")
    found = []
    for name, turned, as_grey in (
        ("plain", {"picture": upright}, {"picture": grey.convert("RGB")}),
        ("odd", {"picture": upright.transpose(Image.Transpose.ROTATE_90), "exif": exif.tobytes()}, {"picture": grey}),
    ):
        root = tmp_path / name
        copy = type(data)(root, *(type(data.train)(root / split) for split in ("train", "val")))
        for split in (copy.train, copy.val):
            split.add("turned.png", size=(48, 64), boxes=BOX, **turned)
            split.add("grey.png", boxes=BOX, **as_grey)
        found.append(as_metrics(train_on, spec_of(copy), name))
        assert load_dataset(only_val_data(tmp_path / "runs" / name)).image_sizes.tolist() == [[64, 48], [64, 64]]
    assert found[0] == found[1]
    assert found[0]["val/detections"] > 0
