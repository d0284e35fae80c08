"""The health check on sound and spoilt images, and counts of odd boxes."""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from detector.data import health
from detector.data.box_counts import count_boxes
from detector.data.formats import open_dataset
from detector.data.formats.coco import load_coco
from detector.data.health import count_contents, find_unusable

Content = dict[str, Any]
Write = Callable[..., tuple[Path, Path]]


def test_counts_by_hand() -> None:
    boxes = np.array([[0, 0, 40, 30], [0, 0, 0, 5], [50, 0, 5, 5], [-5, 0, 5, 5], [39, 29, 2, 1], [-9, -9, 90, 90]])
    counts = count_boxes(boxes.astype(float), np.tile([[30, 40]], (6, 1)))
    assert (counts.zero_size, counts.outside, counts.partly_outside) == (1, 2, 2)
    assert not count_boxes(np.zeros((0, 4)), np.zeros((0, 2), dtype=np.int64))
    assert not count_boxes(boxes[:1].astype(float), np.array([[30, 40]]))


@given(arrays(np.float64, (7, 4), elements=st.floats(-100, 100)), arrays(np.int64, (7, 2), elements=st.integers(1, 90)))
def test_counts_are_exclusive(boxes: np.ndarray, sizes: np.ndarray) -> None:
    boxes[:, 2:] = abs(boxes[:, 2:])
    counts = count_boxes(boxes, sizes)
    assert 0 <= counts.zero_size + counts.outside + counts.partly_outside <= 7


def test_a_sound_data_set(coco: Content, write_coco: Write) -> None:
    done: list[tuple[int, int]] = []
    dataset = load_coco(*write_coco(coco), None, "made")
    assert find_unusable(dataset, progress=lambda *counts: done.append(counts)) == {}
    assert done == [(1, 3), (2, 3), (3, 3)]
    contents = count_contents(dataset)
    assert (contents.images, contents.boxes, contents.crowds, contents.difficult) == (3, 3, 1, 0)
    assert (contents.images_without_boxes, contents.tiny_images, contents.dropped_boxes) == (1, 3, 0)
    assert not contents.odd_boxes


def test_D1_images_that_cannot_be_used_are_found_and_left_out(coco: Content, write_coco: Write) -> None:
    coco["images"][2]["width"] = 41
    file, images = write_coco(coco)
    os.truncate(images / "a.png", 300)
    dataset = load_coco(file, images, None, "made")
    found = find_unusable(dataset, workers=2)
    assert list(found) == [0, 2]
    assert found[0].startswith("is damaged")
    assert found[2] == "is 40x30 pixels, the annotations say 41x30"
    assert list(find_unusable(dataset, [1, 2])) == [2]
    assert find_unusable(dataset, []) == {}
    rest = dataset.without(found)
    assert rest.image_ids == (0,)
    assert rest.boxes_xywh.tolist() == [[1, 2, 10, 5], [3, 3, 20, 20]]
    assert [image.path.name for image in rest.skipped] == ["a.png", "c.png"]
    assert [image.path.name for image in rest.without({0: "too dull"}).skipped] == ["a.png", "c.png", "b.png"]


def test_D3_odd_boxes_are_counted(coco: Content, write_coco: Write) -> None:
    coco["annotations"] += [
        {"id": 90, "image_id": 0, "category_id": 2, "bbox": [5, 5, 0, 5]},
        {"id": 91, "image_id": 0, "category_id": 2, "bbox": [35, 5, 20, 5]},
        {"id": 92, "image_id": 0, "category_id": 2, "bbox": [39.5, 5, 20, 5]},
        {"id": 93, "image_id": 0, "category_id": 2, "bbox": [99, 5, 20, 5], "iscrowd": 1},
    ]
    contents = count_contents(load_coco(*write_coco(coco), None, "made"), min_side_px=20)
    assert (contents.odd_boxes.zero_size, contents.odd_boxes.outside, contents.odd_boxes.partly_outside) == (1, 0, 2)
    assert (contents.dropped_boxes, contents.tiny_images) == (2, 0)


def test_a_read_that_hangs_ends_the_check(coco: Content, write_coco: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()

    def read(path: Path, expected_size: tuple[int, int]) -> None:
        if path.name == "b.png":
            released.wait(30)

    monkeypatch.setattr(health, "check_image", read)
    found = find_unusable(load_coco(*write_coco(coco), None, "made"), workers=1, timeout_s=0.3)
    released.set()
    assert found == dict.fromkeys((1, 2), "was not read: no image got done for 0.3 s")


def test_D2_few_large_images_are_decoded_at_once(
    coco: Content, write_coco: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = load_coco(*write_coco(coco), None, "made").subset([0] * 24)
    dataset.image_sizes[::2] = (9_000, 10_000)
    lock = threading.Lock()
    now, most = {True: 0, False: 0}, {True: 0, False: 0}

    def decode(_: Path, expected_size: tuple[int, int]) -> None:
        large = expected_size == (9_000, 10_000)
        with lock:
            now[large] += 1
            most[large] = max(most[large], now[large])
        time.sleep(0.02)
        with lock:
            now[large] -= 1

    monkeypatch.setattr(health, "check_image", decode)
    assert find_unusable(dataset, workers=24) == {}
    assert 1 <= most[True] <= health.LARGE_AT_ONCE


def test_real_data_is_sound(shared_data: Path) -> None:
    assert find_unusable(open_dataset(shared_data / "coco2017_slice", "train"), workers=2) == {}
    dataset = open_dataset(shared_data / "bccd", "val")
    assert len(dataset) == 87
    assert find_unusable(dataset, workers=2) == {}
