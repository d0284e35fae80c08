"""Plots are drawn from full, thin and missing data, into whole PNG files."""

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detector.data.samples import Category, Dataset
from detector.evaluation.correlation import Correlation
from detector.evaluation.results import DetectionTable
from runyard.reports.plots import (
    ConfidencePanel,
    plot_ap_by_iou,
    plot_confidence_panels,
    plot_correlation,
    plot_training_curves,
)
from runyard.reports.style import new_figure, save_figure

pytestmark = pytest.mark.filterwarnings("error::UserWarning", "error::RuntimeWarning")


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
        return image.size


def one_image_dataset() -> Dataset:
    return Dataset(
        name="one", categories=(Category(1, "fish $x_1$"),), image_paths=(Path("/none.jpg"),), image_ids=(1,),
        image_sizes=np.array([[100, 100]]), offsets=np.array([0, 1]), boxes_xywh=np.array([[10.0, 10.0, 40.0, 40.0]]),
        labels=np.array([0]), areas=np.array([1600.0]), is_crowd=np.array([False]), is_difficult=np.array([False]),
    )  # fmt: skip


def detections(count: int, *, with_iou: bool) -> DetectionTable:
    random = np.random.default_rng(0)
    unknown = np.full(count, np.nan)
    return DetectionTable(
        image_index=np.zeros(count, dtype=np.int64), labels=np.zeros(count, dtype=np.int64),
        boxes_xywh=np.column_stack([random.uniform(0, 20, (count, 2)), np.full((count, 2), 40.0)]),
        scores=random.random(count), class_scores=random.random(count),
        ious=random.random(count) if with_iou else unknown,
    )  # fmt: skip


@pytest.mark.parametrize("count", [0, 1, 500])
def test_correlation_has_a_panel_for_each_confidence(tmp_path: Path, count: int) -> None:
    path = tmp_path / "plots" / "correlation.png"
    table = detections(count, with_iou=True)
    assert plot_correlation(one_image_dataset(), table, path, title="coco $\\alpha$ {_") == path
    three = size_of(path)
    plot_correlation(one_image_dataset(), detections(count, with_iou=False), path)
    one = size_of(path)
    assert (three[0] > 2 * one[0]) == (count > 0)
    assert [entry.name for entry in path.parent.iterdir()] == ["correlation.png"]


def test_panels_share_their_scale_and_take_nan(tmp_path: Path) -> None:
    known = np.array([0.0, 0.5, 1.0, math.nan])
    panels = [ConfidencePanel(name, known, np.array([0.0, 0.2, 1.0, 0.5]), Correlation(0.9, None, 3)) for name in "ab"]
    size_of(plot_confidence_panels(panels, tmp_path / "panels.png"))


def test_training_curves_draw_what_is_there(tmp_path: Path) -> None:
    steps = range(10, 1000, 10)
    losses = {f"train/{name}": [(step, 1 / step) for step in steps] for name in ("loss", "loss_cls", "loss_box")}
    everything = {
        **losses,
        "train/learning_rate": [(step, 0.01) for step in steps],
        "val/AP": [(500, 0.1), (990, math.nan)],
        "train/images_per_s": [(10, 3.0)],
    }
    full = size_of(plot_training_curves(everything, tmp_path / "full.png", title="run"))
    thin = size_of(plot_training_curves({"train/loss": [(1, 0.0)]}, tmp_path / "thin.png"))
    empty = size_of(plot_training_curves({}, tmp_path / "empty.png"))
    assert full[0] > 2 * thin[0]
    assert thin == empty


@pytest.mark.parametrize("count", [1, 2, 4])
def test_ap_by_threshold(tmp_path: Path, count: int) -> None:
    metrics = {f"val/AP{threshold}": 1 - threshold / 100 for threshold in range(50, 95, 5)}
    runs = {f"run {number}": metrics for number in range(count)}
    size_of(plot_ap_by_iou(runs, tmp_path / "ap.png", title="AP"))


def test_ap_by_threshold_without_any_value(tmp_path: Path) -> None:
    size_of(plot_ap_by_iou({"baseline": {}, "other": {}}, tmp_path / "ap.png"))


def test_drawing_changes_no_setting_of_the_user(tmp_path: Path) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    plot_training_curves({"train/loss": [(1, 1.0)]}, tmp_path / "curve.png")
    save_figure(new_figure(1, 1), tmp_path / "blank.png")
    assert dict(matplotlib.rcParams) == before
