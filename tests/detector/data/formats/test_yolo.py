"""YOLO's text labels in Ultralytics' layout: every variant of its files, and what is refused."""

import contextlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from detector.data.formats import FORMATS, FormatName, dataset_name, open_dataset, open_split, open_splits
from detector.data.formats import yolo_description as description
from detector.errors import DatasetError

NAMES = "names: [cat, dog, bird]\n"
FOLDERS = "train: images/train\nval: images/val\n"
Picture = Callable[..., None]


@pytest.fixture
def root(tmp_path: Path, picture: Picture) -> Path:
    """Three training images of 40 x 30 px, of which b has two objects and c no label file; one validation image."""
    folder = tmp_path / "farm"
    for name in ("train/a", "train/b", "train/c", "val/d"):
        picture(folder / "images" / f"{name}.jpg")
    write(folder / "labels/train/a.txt", "0 0.5 0.5 0.25 0.5\n")
    write(folder / "labels/train/b.txt", "2 0.25 0.5 0.5 1\n1 0.75 0.5 0.5 0.2\n")
    write(folder / "labels/val/d.txt", "1 0.5 0.5 1 1\n")
    write(folder / "data.yaml", FOLDERS + NAMES)
    return folder


def write(file: Path, content: str | bytes) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def test_the_names_of_the_formats_are_those_of_the_list() -> None:
    assert get_args(FormatName) == ("auto", *(known.name for known in FORMATS))


def test_folders_of_images_and_labels(root: Path) -> None:
    train, val = open_splits(root, "train", "val")
    assert train.name == "farm/train"
    assert [path.name for path in train.image_paths] == ["a.jpg", "b.jpg", "c.jpg"]
    assert train.image_ids == ("images/train/a.jpg", "images/train/b.jpg", "images/train/c.jpg")
    assert [(category.id, category.name) for category in train.categories] == [(0, "cat"), (1, "dog"), (2, "bird")]
    assert train.image_sizes.tolist() == [[30, 40]] * 3
    assert train.offsets.tolist() == [0, 1, 3, 3]
    assert train.labels.tolist() == [0, 2, 1]
    assert train.boxes_xywh.tolist() == [[15, 7.5, 10, 15], [0, 0, 20, 30], [20, 12, 20, 6]]
    assert train.areas.tolist() == [150, 600, 120]
    assert train.box_convention == "half_open"
    assert val.boxes_xywh.tolist() == [[0, 0, 40, 30]]
    assert val.labels.tolist() == [1]
    assert dataset_name(root) == dataset_name(root / "data.yaml") == "farm"


@pytest.mark.parametrize(
    "text",
    [
        "path: .\n" + FOLDERS + NAMES,
        "path: /a/place/of/long/ago\n" + FOLDERS + NAMES,
        "train: [images/train]\nval: images/val\ntest:\n" + NAMES,
        "train: ../images/train\nval: ../images/val\n" + NAMES,  # Roboflow
        FOLDERS + "nc: 3\n" + NAMES,
        FOLDERS + "names:\n  0: cat\n  1: dog\n  2: bird\n",
        FOLDERS + "names: {2: bird, 0: cat, 1: dog}\nnc: 3\n",
        "train: images/train\nvalid: images/val\n" + NAMES,
        "\ufeff" + (FOLDERS + NAMES).replace("\n", "\r\n"),
        FOLDERS + NAMES + "download: !!python/object/apply:os.system ['touch hacked']\n",
    ],
)
def test_spellings_of_the_description(root: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = open_splits(root, "train", "val")
    monkeypatch.chdir(root)
    write(root / "data.yaml", text)
    for split in zip(open_splits(root, "train", "valid"), expected, strict=True):
        found, known = split
        assert found.image_paths == known.image_paths
        assert found.class_names == ("cat", "dog", "bird")
        np.testing.assert_array_equal(found.boxes_xywh, known.boxes_xywh)
    assert not (root / "hacked").exists()


def test_class_names_stay_texts(root: Path) -> None:
    write(root / "data.yaml", FOLDERS + "names: [no, 1, 2001-01-01]\n")
    assert open_dataset(root, "train").class_names == ("no", "1", "2001-01-01")
    write(root / "data.yaml", FOLDERS + "nc: 3\n")
    assert open_dataset(root, "train").class_names == ("class_0", "class_1", "class_2")


def test_a_description_elsewhere_names_the_folder(root: Path, tmp_path: Path) -> None:
    (root / "data.yaml").unlink()
    file = write(tmp_path / "configs" / "farm.yaml", "path: ../farm\n" + FOLDERS + NAMES)
    assert open_dataset(file, "train").image_ids[0] == "images/train/a.jpg"
    write(file, f"path: {root}\n" + FOLDERS + NAMES)
    assert len(open_dataset(file, "train", format="yolo")) == 3


def test_lists_of_image_files(root: Path) -> None:
    write(root / "data.yaml", "train: lists/train.txt\nval: images/val\n" + NAMES)
    inside = root / "images" / "train"
    lines = ["../images/train/b.jpg", "images/train/a.jpg", str(inside / "c.jpg"), ""]
    write(root / "lists" / "train.txt", "\ufeff" + "\r\n".join(lines))
    dataset = open_dataset(root, "train")
    assert [path.name for path in dataset.image_paths] == ["b.jpg", "a.jpg", "c.jpg"]
    assert dataset.labels.tolist() == [2, 1, 0]
    write(root / "lists" / "train.txt", "images/train/a.jpg\nimages/train/z.jpg\n/etc/passwd\n../../x.jpg\n")
    with pytest.raises(DatasetError, match=r"train.txt: 3 of 4 lines .* line 2: 'images/train/z.jpg'; line 3"):
        open_dataset(root, "train")


def test_several_folders_sub_folders_and_labels_beside_the_images(root: Path, picture: Picture) -> None:
    picture(root / "more" / "deep" / "e.png")
    write(root / "more" / "deep" / "e.txt", "0 0.5 0.5 0.1 0.1")
    picture(root / "more" / "._e.png")
    write(root / "data.yaml", "train: [images/train, more]\nval: images/val\n" + NAMES)
    dataset = open_dataset(root, "train")
    assert dataset.image_ids[-1] == "more/deep/e.png"
    assert len(dataset.labels) == 4
    write(root / "data.yaml", "train: [more, more/deep]\nval: images/val\n" + NAMES)
    with pytest.raises(DatasetError, match="1 images are listed more than once"):
        open_dataset(root, "train")


def test_labels_mirror_the_last_folder_called_images(root: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    moved = root.rename(tmp_path / "images" / "farm")
    assert open_dataset(moved, "train").labels.tolist() == [0, 2, 1]


def test_a_polygon_becomes_the_box_around_it(root: Path) -> None:
    write(root / "labels/train/a.txt", "0 0.25 0.5 0.5 0.25 0.75 0.5 0.5 0.75\n")
    assert open_dataset(root, "train").boxes_xywh[0].tolist() == [10, 7.5, 20, 15]


def test_key_points_are_left_out(root: Path) -> None:
    write(root / "data.yaml", FOLDERS + NAMES + "kpt_shape: [2, 3]\n")
    write(root / "labels/train/b.txt", "2 0.25 0.5 0.5 1 .1 .1 2 .2 .2 0\n")
    write(root / "labels/train/a.txt", "")
    write(root / "labels/val/d.txt", "")
    assert open_dataset(root, "train").boxes_xywh.tolist() == [[0, 0, 20, 30]]
    write(root / "labels/train/b.txt", "2 0.25 0.5 0.5 1\n")
    with pytest.raises(DatasetError, match=r"line 1: expected 11 values \(kpt_shape\), found 5"):
        open_dataset(root, "train")


def test_bytes_that_do_no_harm(root: Path) -> None:
    expected = open_dataset(root, "train").boxes_xywh
    write(root / "labels/train/b.txt", b"\xef\xbb\xbf2.0 2.5e-1  0.5 0.5 1.0\r\n\r\n\t1 0.75 0.5 0.5 0.2 \r\n")
    np.testing.assert_array_equal(open_dataset(root, "train").boxes_xywh, expected)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("3 0.5 0.5 0.1 0.1", "expected a class from 0 to 2, found 3"),
        ("-1 0.5 0.5 0.1 0.1", "expected a class from 0 to 2, found -1"),
        ("0.5 0.5 0.5 0.1 0.1", r"expected a class from 0 to 2, found 0\.5"),
        ("cat 0.5 0.5 0.1 0.1", "expected numbers, found 'cat 0.5"),
        ("0 0.5 0.5 0.1", "expected 5 values, or 7 or more for a polygon, found 4"),
        ("0 0.5 0.5 0.1 0.1 0.9", "found 6 values: the last one looks like a score"),
        ("0 0.5 0.5 0.1 0.1 0.9 0.8 0.7", ".*found 8"),
        ("0 20 15 10 10", r"expected fractions from 0 to 1, found 20 \(in pixels\?\)"),
        ("0 0.5 0.5 nan 0.1", "expected fractions from 0 to 1, found nan"),
        ("0 0.5 0.5 inf 0.1", "expected fractions from 0 to 1, found inf"),
        ("0 0.5 -0.2 0.1 0.1", r"expected fractions from 0 to 1, found -0\.2"),
        ("0 0.5 0.5 -0.005 0.1", "expected a width and height of at least 0"),
        ("0 1e400 0.5 0.1 0.1", "expected fractions from 0 to 1, found inf"),
    ],
)
def test_bad_lines_are_named_with_file_and_line(root: Path, line: str, problem: str) -> None:
    write(root / "labels/train/b.txt", f"1 0.5 0.5 0.1 0.1\n\n{line}\n")
    with pytest.raises(DatasetError, match=rf"labels/train/b\.txt: line 3: {problem}"):
        open_dataset(root, "train")


def test_every_bad_file_is_known_at_once(root: Path) -> None:
    write(root / "labels/train/a.txt", "9 0.5 0.5 0.1 0.1\n" * 20)
    write(root / "labels/train/b.txt", b"\xff\xfe0\x00")
    with pytest.raises(DatasetError, match=r"2 label files cannot be used: .*a.txt: line 1.* and 10 more.*b.txt"):
        open_dataset(root, "train")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (FOLDERS + "names: {0: cat, 2: dog}\n", r"names: expected the class numbers 0 to 1, found \['0', '2'\]"),
        (FOLDERS + "names: []\n", "names: expected class names"),
        (FOLDERS + "names: [[a]]\n", "names: expected class names"),
        (FOLDERS + "names: cat\n", "names: expected class names, found 'cat'"),
        (FOLDERS + "nc: 2\n" + NAMES, "nc: expected 3, the number of names, found 2"),
        (FOLDERS + "nc: many\n", "nc: expected a number of classes"),
        (FOLDERS, "has neither 'names' nor 'nc'"),
        (FOLDERS + "names: [a, a, b]\n", "1 class names are used by several categories: 'a'"),
        ("train: {a: b}\n" + NAMES, "train: expected a path or a list of paths"),
        ("train: nowhere\n" + NAMES, "train: expected a folder of images or a list file in .*, found 'nowhere'"),
        ("train: ../../../../../etc\n" + NAMES, "train: expected a folder of images"),
        ("train: /etc\n" + NAMES, "train: expected a folder of images"),
        ('train: "a\\0b"\n' + NAMES, "data.yaml"),
        ("path: [a]\n" + FOLDERS + NAMES, "path: expected a folder"),
        ("val: images/val\n" + NAMES, "has no split 'train'. Its splits: val"),
        ("train: labels\n" + NAMES, "train: has no images"),
        ("- a\n", "expected a mapping at the top, found a list"),
        ("", "expected a mapping at the top"),
        ("train: [\n", "is not valid YAML: .* at line 2"),
        ("a: *b\n", "is not valid YAML"),
        ("[" * 5000, "nested too deeply|not valid YAML"),
        (FOLDERS + NAMES + "kpt_shape: 17\n", r"kpt_shape: expected \[points, 2 or 3\]"),
    ],
)
def test_bad_descriptions(root: Path, text: str, problem: str) -> None:
    write(root / "data.yaml", text)
    with pytest.raises(DatasetError, match=problem) as caught:
        open_dataset(root, "train")
    assert str(root) in str(caught.value)


def test_H4_a_hostile_description_costs_nothing(root: Path) -> None:
    laughs = ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    laughs += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    started = time.monotonic()
    write(root / "data.yaml", "\n".join(laughs) + "\nnames: *a11\ntrain: *a11\n")
    with pytest.raises(DatasetError, match="expected class names") as caught:
        open_dataset(root, "train")
    assert len(str(caught.value)) < 2000
    write(root / "data.yaml", b"#" * (description.MAX_BYTES + 1))
    with pytest.raises(DatasetError, match="is larger than 1 MiB"):
        open_dataset(root, "train")
    write(root / "data.yaml", b"\xff\xfe")
    with pytest.raises(DatasetError, match="is not UTF-8 text"):
        open_dataset(root, "train")
    assert time.monotonic() - started < 10


def test_images_without_any_label_file_are_refused(root: Path) -> None:
    (root / "labels").rename(root / "labelled")
    with pytest.raises(DatasetError, match=r"none of 3 images has a label file; the first .*/labels/train/a\.txt"):
        open_dataset(root, "train")


def test_images_that_are_not_read_are_said(root: Path) -> None:
    write(root / "images/train/x.webp", b"RIFF")
    with pytest.raises(DatasetError, match=r"1 images are of a format that is not read: .*x\.webp"):
        open_dataset(root, "train")
    (root / "images/train/x.webp").unlink()
    for name in ("x", "y"):
        write(root / f"images/train/{name}.png", b"text")
    with pytest.raises(DatasetError, match=r"sizes of 2 images cannot be read: .*x\.png: .*y\.png: "):
        open_dataset(root, "train")


def test_a_test_split_has_the_training_classes(root: Path, picture: Picture) -> None:
    picture(root / "images" / "test" / "t.jpg")
    write(root / "labels/test/t.txt", "2 0.5 0.5 1 1\n")
    write(root / "data.yaml", FOLDERS + "test: images/test\n" + NAMES)
    test = open_split(root, "test", ("bird", "cat", "dog"))
    assert test.labels.tolist() == [0]
    assert [category.id for category in test.categories] == [2, 0, 1]
    with pytest.raises(DatasetError, match=r"has boxes of classes that the training data has none of: 'bird' \(1"):
        open_split(root, "test", ("cat", "dog"))
    assert open_split(root, "test", ("cat", "dog"), drop_other_classes=True).offsets.tolist() == [0, 0]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_bytes_the_files_hold_the_result_is_a_data_set_or_an_error(root: Path, data: st.DataObject) -> None:
    file = root / data.draw(st.sampled_from(["data.yaml", "labels/train/b.txt"]))
    original = (FOLDERS + NAMES if file.suffix == ".yaml" else "2 0.25 0.5 0.5 1\n1 0.75 0.5 0.5 0.2\n").encode()
    start, length = data.draw(st.integers(0, len(original))), data.draw(st.integers(0, 5))
    write(file, original[:start] + data.draw(st.binary(max_size=12)) + original[start + length :])
    boxes = np.zeros((0, 4))
    with contextlib.suppress(DatasetError):
        boxes = open_dataset(root, "train").boxes_xywh
    write(file, original)
    assert np.isfinite(boxes).all()
    assert (boxes[:, 2:] >= 0).all()


def test_two_formats_in_one_folder_are_told_apart(root: Path, coco: dict[str, object], picture: Picture) -> None:
    write(root / "train/_annotations.coco.json", json.dumps(coco))
    for letter in "abc":
        picture(root / "train" / f"{letter}.png")
    with pytest.raises(DatasetError, match=r"as COCO .* and as YOLO .* at once.*Say which: coco or yolo"):
        open_dataset(root, "train")
    assert open_dataset(root, "train", format="yolo").image_ids[0] == "images/train/a.jpg"
    assert open_dataset(root, "train", format="coco").image_ids == (7, 0, 12)
    with pytest.raises(DatasetError, match="cannot be chosen for YOLO"):
        open_dataset(root, "train", format="yolo", images=root)
    with pytest.raises(DatasetError, match="is a COCO file, and the format was said to be YOLO"):
        open_dataset(root, "train", format="yolo", annotations=root / "train/_annotations.coco.json")
