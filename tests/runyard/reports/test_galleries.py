"""Galleries: what is drawn, where, and in which colour."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor

from detector.data.samples import Category, Dataset
from detector.errors import DatasetError
from detector.evaluation.results import DetectionTable
from runyard.reports.galleries import class_colour, draw_gallery

GREY = (90, 90, 90)


def grey_images(folder: Path, sizes: list[tuple[int, int]], objects: list[int]) -> Dataset:
    """Images of one grey, each with its number of 40-pixel squares in a row."""
    paths = []
    for number, size in enumerate(sizes):
        paths.append(folder / f"image {number} {'x' * 60}.png")
        Image.new("RGB", size, GREY).save(paths[-1])
    offsets = np.concatenate([[0], np.cumsum(objects)]).astype(np.int64)
    total = int(offsets[-1])
    place = np.concatenate([np.arange(count) for count in objects] or [np.zeros(0)])
    crowd = np.zeros(total, dtype=bool)
    return Dataset(
        name="grey", categories=(Category(1, "fish"), Category(2, "Ünïcode 鱼")), image_paths=tuple(paths),
        image_ids=tuple(range(len(sizes))),
        image_sizes=np.array([(height, width) for width, height in sizes], dtype=np.int64).reshape(-1, 2),
        offsets=offsets, boxes_xywh=np.column_stack([20 + 60 * place, np.full(total, 20), np.full((total, 2), 40)]),
        labels=np.zeros(total, dtype=np.int64), areas=np.full(total, 1600.0), is_crowd=crowd, is_difficult=crowd,
    )  # fmt: skip


def one_detection(score: float, box: tuple[float, float, float, float] = (100, 100, 60, 60)) -> DetectionTable:
    return DetectionTable(
        image_index=np.array([0]), labels=np.array([1]), boxes_xywh=np.array([box]), scores=np.array([score])
    )


def count_pixels(path: Path, label: int) -> int:
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    return int((pixels == np.array(ImageColor.getrgb(class_colour(label)))).all(axis=2).sum())


def test_ground_truth_and_detections_are_drawn_in_their_class_colours(tmp_path: Path) -> None:
    dataset = grey_images(tmp_path, [(240, 240)], [2])
    path = draw_gallery(dataset, one_detection(0.9), tmp_path / "new" / "gallery.png")
    assert count_pixels(path, 0) > 200
    assert count_pixels(path, 1) > 1000


def test_detections_below_the_threshold_are_left_out(tmp_path: Path) -> None:
    dataset = grey_images(tmp_path, [(240, 240)], [1])
    path = draw_gallery(dataset, one_detection(0.2), tmp_path / "gallery.png", score_threshold=0.3)
    assert count_pixels(path, 1) == 0
    path = draw_gallery(dataset, one_detection(0.2), tmp_path / "gallery.png", score_threshold=0.1)
    assert count_pixels(path, 1) > 0


def test_by_default_as_many_detections_are_drawn_as_there_are_objects(tmp_path: Path) -> None:
    dataset = grey_images(tmp_path, [(240, 240)], [1])
    found = [one_detection(score, (10, 10, 200, 200)) for score in (0.01, 0.02)]
    found[0] = replace(found[0], labels=np.array([2]))
    path = draw_gallery(dataset, DetectionTable.concatenate(found), tmp_path / "gallery.png")
    assert (count_pixels(path, 1) > 0, count_pixels(path, 2)) == (True, 0)


def test_the_grid_holds_so_many_images_and_no_more(tmp_path: Path) -> None:
    dataset = grey_images(tmp_path, [(100, 50), (50, 100), (80, 80), (30, 30), (1, 200)], [1, 1, 0, 1, 1])
    nobody = DetectionTable.empty()
    sizes = []
    for images in (1, 4, 9):
        with Image.open(draw_gallery(dataset, nobody, tmp_path / "gallery.png", images=images)) as sheet:
            sizes.append(sheet.size)
    assert sizes[0] < sizes[1] == sizes[2]  # four images have ground truth


@pytest.mark.parametrize("box", [(-50, -50, 30, 30), (200, 200, 500, 500), (10, 10, 0, 0), (0, 0, 240, 240)])
def test_boxes_that_leave_the_image_or_are_empty(tmp_path: Path, box: tuple[float, float, float, float]) -> None:
    draw_gallery(grey_images(tmp_path, [(240, 240)], [0]), one_detection(0.9, box), tmp_path / "gallery.png")


def test_a_data_set_without_images_or_objects(tmp_path: Path) -> None:
    draw_gallery(grey_images(tmp_path, [], []), DetectionTable.empty(), tmp_path / "none.png")
    path = draw_gallery(grey_images(tmp_path, [(64, 64)], [0]), DetectionTable.empty(), tmp_path / "gallery.png")
    with Image.open(path) as sheet:
        assert (np.asarray(sheet.convert("RGB")) == GREY).all(axis=2).sum() > 400 * 400


def test_a_damaged_image_is_a_clear_error_and_leaves_no_file(tmp_path: Path) -> None:
    dataset = grey_images(tmp_path, [(64, 64)], [1])
    dataset.image_paths[0].write_bytes(b"no image")
    with pytest.raises(DatasetError, match="image 0"):
        draw_gallery(dataset, DetectionTable.empty(), tmp_path / "gallery.png")
    assert not (tmp_path / "gallery.png").exists()


def test_eighty_classes_have_eighty_colours() -> None:
    assert len({class_colour(label) for label in range(80)}) == 80
