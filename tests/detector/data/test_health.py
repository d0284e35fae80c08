"""The health check on sound and spoilt images, and counts of odd boxes."""

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from detector.data import health
from detector.data.box_counts import count_boxes
from detector.data.coco import load_coco
from detector.data.health import check_dataset
from detector.data.layouts import open_dataset

Content = dict[str, Any]
Write = Callable[..., tuple[Path, Path]]


def test_counts_by_hand() -> None:
    boxes = np.array([[0, 0, 40, 30], [0, 0, 0, 5], [50, 0, 5, 5], [-5, 0, 5, 5], [39, 29, 2, 1], [-9, -9, 90, 90]])
    counts = count_boxes(boxes.astype(float), np.tile([[40, 30]], (6, 1)))
    assert (counts.zero_size, counts.outside, counts.partly_outside) == (1, 2, 2)
    assert not count_boxes(np.zeros((0, 4)), np.zeros((0, 2), dtype=np.int64))
    assert not count_boxes(boxes[:1].astype(float), np.array([[40, 30]]))


@given(arrays(np.float64, (7, 4), elements=st.floats(-100, 100)), arrays(np.int64, (7, 2), elements=st.integers(1, 90)))
def test_counts_are_exclusive(boxes: np.ndarray, sizes: np.ndarray) -> None:
    boxes[:, 2:] = abs(boxes[:, 2:])
    counts = count_boxes(boxes, sizes)
    assert 0 <= counts.zero_size + counts.outside + counts.partly_outside <= 7


def test_a_sound_data_set(coco: Content, write_coco: Write) -> None:
    done: list[tuple[int, int]] = []
    report = check_dataset(load_coco(*write_coco(coco), None, "made"), progress=lambda *counts: done.append(counts))
    assert report.healthy
    assert (report.images, report.boxes, report.crowds, report.difficult) == (3, 3, 1, 0)
    assert (report.images_without_boxes, report.tiny_images, report.dropped_boxes) == (1, 3, 0)
    assert not report.odd_boxes
    assert done == [(1, 3), (2, 3), (3, 3)]


def test_D1_D3_a_spoilt_data_set(coco: Content, write_coco: Write) -> None:
    coco["images"][2]["width"] = 41
    coco["annotations"] += [
        {"id": 90, "image_id": 0, "category_id": 2, "bbox": [5, 5, 0, 5]},
        {"id": 91, "image_id": 0, "category_id": 2, "bbox": [35, 5, 20, 5]},
        {"id": 92, "image_id": 0, "category_id": 2, "bbox": [39.5, 5, 20, 5]},
        {"id": 93, "image_id": 0, "category_id": 2, "bbox": [99, 5, 20, 5], "iscrowd": 1},
    ]
    file, images = write_coco(coco)
    os.truncate(images / "a.png", 300)
    report = check_dataset(load_coco(file, images, None, "made"), workers=2, min_side_px=20)
    assert not report.healthy
    assert report.unusable == (0, 2)
    assert [problem.path.name for problem in report.problems] == ["a.png", "c.png"]
    assert "is damaged" in report.problems[0].reason
    assert report.problems[1].reason == "is 40x30 pixels, the annotations say 41x30"
    assert (report.odd_boxes.zero_size, report.odd_boxes.outside, report.odd_boxes.partly_outside) == (1, 0, 2)
    assert (report.dropped_boxes, report.tiny_images) == (2, 0)
    short = check_dataset(load_coco(file, images, None, "made"), listed=1)
    assert (len(short.problems), short.unusable) == (1, (0, 2))


def test_a_read_that_hangs_ends_the_check(coco: Content, write_coco: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()

    def read(path: Path, expected_size: tuple[int, int]) -> torch.Tensor:
        if path.name == "b.png":
            released.wait(30)
        return torch.zeros(3, *expected_size[::-1])

    monkeypatch.setattr(health, "read_image", read)
    report = check_dataset(load_coco(*write_coco(coco), None, "made"), workers=1, timeout_s=0.3)
    released.set()
    assert report.unusable == (1, 2)
    assert report.problems[0].reason == "was not read: no image got done for 0.3 s"


def test_real_data_is_sound(shared_data: Path) -> None:
    assert check_dataset(open_dataset(shared_data / "coco2017_slice", "train"), workers=2).healthy
    report = check_dataset(open_dataset(shared_data / "bccd", "val"), workers=2)
    assert report.healthy
    assert report.images == 87
