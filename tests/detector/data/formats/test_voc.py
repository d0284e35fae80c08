"""PASCAL VOC folders, sound and spoilt."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from detector.data.class_list import single_dataset
from detector.data.formats.voc import VOC_CLASSES, parse_voc
from detector.data.formats.voc_xml import read_voc_xml
from detector.data.samples import Dataset
from detector.errors import DatasetError

WriteVoc = Callable[..., Path]
VocXml = Callable[..., str]


def load_voc(root: Path, image_sets: str, classes: tuple[str, ...] | None, name: str) -> Dataset:
    return single_dataset(parse_voc(root, image_sets, name), classes)


@pytest.fixture
def devkit(tmp_path: Path, write_voc: WriteVoc, voc_xml: VocXml) -> Path:
    """VOC2007 with trainval and test, VOC2012 with trainval."""
    root = tmp_path / "VOCdevkit"
    cat, dog = ("cat", (1, 1, 40, 30), 0), ("dog", (8, 10, 12, 20), 1)
    write_voc(
        root / "VOC2007",
        {"000005": voc_xml(cat, dog), "000007": voc_xml(), "000001": voc_xml(dog)},
        {"trainval": "000007\n000005\n", "test": "000001\n", "cat_trainval": "000007 -1\n000005  1\n", "empty": "\n"},
    )
    write_voc(root / "VOC2012", {"2008_000002": voc_xml(cat)}, {"trainval": "2008_000002\n"})
    return root


def test_D9_one_based_inclusive_corners_become_half_open(devkit: Path) -> None:
    dataset = load_voc(devkit, "2007:trainval", None, "VOCdevkit/2007:trainval")
    assert dataset.image_ids == ("000007", "000005")
    assert dataset.image_paths[1] == devkit / "VOC2007" / "JPEGImages" / "000005.jpg"
    assert dataset.image_sizes.tolist() == [[30, 40], [30, 40]]
    assert dataset.offsets.tolist() == [0, 0, 2]
    assert dataset.boxes_xywh.tolist() == [[0, 0, 40, 30], [7, 9, 5, 11]]
    assert dataset.areas.tolist() == [1200, 55]
    assert dataset.is_difficult.tolist() == [False, True]
    assert dataset.box_convention == "inclusive"
    assert dataset.class_names == VOC_CLASSES
    assert [category.id for category in dataset.categories] == list(range(1, 21))
    assert dataset.labels.tolist() == [VOC_CLASSES.index("cat"), VOC_CLASSES.index("dog")]
    assert dataset.training_boxes(1)[0].tolist() == [[0, 0, 40, 30]]


def test_image_sets_of_several_years(devkit: Path) -> None:
    both = load_voc(devkit, "2007:trainval+2012:trainval", None, "both")
    assert both.image_ids == ("000007", "000005", "2008_000002")
    assert load_voc(devkit.parent, "2007:test", None, "from the parent").image_ids == ("000001",)
    assert load_voc(devkit / "VOC2007", "test", None, "one year").image_ids == ("000001",)
    assert load_voc(devkit / "VOC2007", "2007:test", None, "one year").image_ids == ("000001",)


def test_every_line_of_a_per_class_set_is_an_image(devkit: Path) -> None:
    assert load_voc(devkit, "2007:cat_trainval", None, "made").image_ids == ("000007", "000005")


@pytest.mark.parametrize(
    ("image_sets", "message"),
    [
        ("trainval", "several VOC folders, and 'trainval' does not say which.*2007:trainval; 2012:trainval"),
        ("2010:trainval", "has no VOC2010"),
        ("2007:nope", "no such image set.*There are: cat_trainval; empty; test; trainval"),
        ("2007:empty", "lists no images"),
        ("2007:trainval+2007:cat_trainval", "2 images are listed more than once: '000007'; '000005'"),
        ("2007:../Main/test", "is not a VOC split"),
        ("2007:", "is not a VOC split"),
        ("", "is not a VOC split"),
        ("+", "is not a VOC split"),
        ("2007:te\0st", "is not a VOC split"),
    ],
)
def test_splits_that_do_not_exist(devkit: Path, image_sets: str, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        load_voc(devkit, image_sets, None, "made")


def test_a_folder_of_another_form(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="holds no VOC folder"):
        load_voc(tmp_path, "train", None, "made")
    with pytest.raises(DatasetError, match="holds no VOC folder"):
        load_voc(tmp_path / "missing", "train", None, "made")


def test_other_class_names_are_sorted(tmp_path: Path, write_voc: WriteVoc, voc_xml: VocXml) -> None:
    box = (1, 1, 5, 5)
    write_voc(tmp_path / "Cells", {"a": voc_xml(("wbc", box, 0), ("cat", box, 0))}, {"train": "a"})
    dataset = load_voc(tmp_path, "train", None, "made")
    assert dataset.class_names == ("cat", "wbc")
    assert [category.id for category in dataset.categories] == [1, 2]
    stated = load_voc(tmp_path, "train", ("wbc",), "made")
    assert (stated.labels.tolist(), stated.categories[0].id) == ([0], 1)
    with pytest.raises(DatasetError, match=r"does not have the stated classes 'dog'.*It has: 'cat', 'wbc'"):
        load_voc(tmp_path, "train", ("wbc", "dog"), "made")


def test_no_object_at_all_needs_a_stated_class_list(tmp_path: Path, write_voc: WriteVoc, voc_xml: VocXml) -> None:
    write_voc(tmp_path, {"a": voc_xml()}, {"train": "a"})
    with pytest.raises(DatasetError, match=r"has no classes.*State the class list"):
        load_voc(tmp_path, "train", None, "made")


@pytest.mark.parametrize("size", [(0, 30), (40, 0)])
def test_a_stated_size_with_a_side_of_0_is_read_from_the_image(
    tmp_path: Path, write_voc: WriteVoc, voc_xml: VocXml, size: tuple[int, int]
) -> None:
    write_voc(tmp_path, {"a": voc_xml(("cell", (1, 1, 4, 4), 0), size=size)}, {"train": "a"})
    assert load_voc(tmp_path, "train", None, "made").image_sizes.tolist() == [[30, 40]]


def test_D9_floats_missing_flags_missing_sizes_and_boxes_beyond_the_image(
    tmp_path: Path, write_voc: WriteVoc, voc_xml: VocXml, caplog: pytest.LogCaptureFixture
) -> None:
    objects = (("cell", (" 1.5 ", 2, "3.25", 4), None), ("cell", (-4, 0, 50, 31), None), ("cell", (9, 9, 9, 9), None))
    texts = {
        "a": voc_xml(*objects, size=None),
        "b": voc_xml(size=(0, 0)),
        "c": voc_xml(size=("40.0", 30)),
        "d": voc_xml(size=(99, 99)),
    }
    write_voc(tmp_path, texts, {"train": "a\nb\nc\nd"})
    dataset = load_voc(tmp_path, "train", ("cell",), "made")
    assert dataset.boxes_xywh.tolist() == [[0.5, 1, 2.75, 3], [-5, -1, 55, 32], [8, 8, 1, 1]]
    assert not dataset.is_difficult.any()
    # A size that the file does not have is the health check's to find.
    assert dataset.image_sizes.tolist() == [[30, 40], [30, 40], [30, 40], [99, 99]]
    assert "1 partly outside" in caplog.text
    assert dataset.training_boxes(0)[0].tolist() == [[0.5, 1, 3.25, 4], [0, 0, 40, 30], [8, 8, 9, 9]]


def test_parts_of_an_object_are_no_objects(tmp_path: Path) -> None:
    file = tmp_path / "person.xml"
    box = "<bndbox><xmin>{0}</xmin><ymin>{0}</ymin><xmax>{1}</xmax><ymax>{1}</ymax></bndbox>"
    part = f"<part><name>head</name>{box.format(2, 3)}</part>"
    file.write_text(f"<annotation><object>{part}<name>person</name>{box.format(1, 9)}</object></annotation>")
    (found,) = read_voc_xml(file).objects
    assert (found.name, found.box_xywh) == ("person", (0, 0, 9, 9))


@pytest.mark.parametrize(
    ("thing", "message"),
    [
        (("cat", (30, 1, 5, 5), 0), r"object 2 \('cat'\): has swapped corners.*'30', '1', '5', '5'"),
        (("cat", (1, 9, 5, 5), 0), r"object 2 \('cat'\): has swapped corners"),
        (("cat", ("nan", 1, 5, 5), 0), r"object 2 \('cat'\): needs a <bndbox> with four finite numbers"),
        (("cat", (1, 1, "1e999", 5), 0), r"object 2 \('cat'\): needs a <bndbox>"),
        (("cat", (1, 1, 1e10, 5), 0), r"object 2 \('cat'\): must lie within 1,000,000,000 px"),
        (("cat", (1, 1, "", 5), 0), r"object 2 \('cat'\): needs a <bndbox>"),
        (("cat", (1, 1, "five", 5), 0), r"object 2 \('cat'\): needs a <bndbox>"),
        (("", (1, 1, 5, 5), 0), "object 2: has no name"),
        (("cat", (1, 1, 5, 5), 2), r"object 2 \('cat'\): difficult: must be 0 or 1"),
    ],
)
def test_D3_D9_bad_objects_are_named(
    tmp_path: Path, write_voc: WriteVoc, voc_xml: VocXml, thing: tuple[str, tuple[int, ...], int], message: str
) -> None:
    write_voc(tmp_path, {"a": voc_xml(("cat", (1, 1, 5, 5), 0), thing)}, {"train": "a"})
    with pytest.raises(DatasetError, match=rf"a\.xml: {message}"):
        load_voc(tmp_path, "train", None, "made")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not valid XML"),
        ("<annotation><object>", "is not valid XML"),
        ("<annotation>&undefined;</annotation>", "is not valid XML"),
        ('<?xml version="1.0" encoding="klingon"?><annotation/>', "is not valid XML"),
        ("<html></html>", "is not a VOC annotation.*<html>"),
        ("<annotation><size><width>x</width><height>3</height></size></annotation>", "size: must be two whole numbers"),
        ("<annotation><size><width>-4</width><height>3</height></size></annotation>", "size: must be two whole"),
    ],
)
def test_files_of_another_form(tmp_path: Path, write_voc: WriteVoc, text: str, message: str) -> None:
    write_voc(tmp_path, {"a": text}, {"train": "a"})
    with pytest.raises(DatasetError, match=message):
        load_voc(tmp_path, "train", None, "made")


def test_all_bad_files_are_reported_at_once(tmp_path: Path, write_voc: WriteVoc) -> None:
    write_voc(
        tmp_path, {f"{index:02}": "<html/>" for index in range(12)}, {"train": "\n".join(f"{i:02}" for i in range(12))}
    )
    with pytest.raises(DatasetError, match=r"12 annotation files cannot be used: .*00\.xml.*; and 2 more"):
        load_voc(tmp_path, "train", None, "made")


def test_D7_missing_files(tmp_path: Path, write_voc: WriteVoc, voc_xml: VocXml) -> None:
    write_voc(tmp_path, {"a": voc_xml(), "b": voc_xml()}, {"train": "a\nb\n../../etc/passwd\n"})
    with pytest.raises(DatasetError, match=r"1 of the 3 annotation files .* missing: '../../etc/passwd'"):
        load_voc(tmp_path, "train", None, "made")
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("a\nb\n")
    (tmp_path / "JPEGImages" / "b.jpg").unlink()
    with pytest.raises(DatasetError, match=r"1 of the 2 images .* missing: 'b'"):
        load_voc(tmp_path, "train", None, "made")


def test_D8_unusual_stems_and_suffixes(tmp_path: Path, write_voc: WriteVoc, voc_xml: VocXml) -> None:
    stems = ["my photo", "my photo 1", "kůň 🐴.v2", os.fsdecode(b"caf\xe9")]
    write_voc(tmp_path, {stem: voc_xml(("cat", (1, 1, 2, 2), 0)) for stem in stems}, {})
    lines = "\ufeff" + "\r\n".join(["my photo  -1", "my photo 1", *stems[2:]])
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text(lines, encoding="utf-8", errors="surrogateescape")
    photos = tmp_path / "JPEGImages"
    (photos / "my photo.jpg").rename(photos / "my photo.JPEG")
    (photos / "my photo 1.jpg").rename(photos / "my photo 1.png")
    dataset = load_voc(tmp_path, "train", None, "made")
    assert dataset.image_ids == tuple(stems)
    assert [path.suffix for path in dataset.image_paths] == [".JPEG", ".png", ".jpg", ".jpg"]
    assert all(path.is_file() for path in dataset.image_paths)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_bytes_are_changed_gives_a_data_set_or_a_dataset_error(
    tmp_path: Path, write_voc: WriteVoc, voc_xml: VocXml, data: st.DataObject
) -> None:
    sound = voc_xml(("cat", (1, 1, 5, 5), 0), ("dog", (2.5, 3, 7, 9), 1)).encode()
    if not (tmp_path / "Annotations").exists():
        write_voc(tmp_path, {"a": ""}, {"train": "a"})
    content = bytearray(sound)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content)))]
    (tmp_path / "Annotations" / "a.xml").write_bytes(content)
    try:
        dataset = load_voc(tmp_path, "train", None, "made")
    except DatasetError as error:
        str(error).encode("utf-8")
        return
    assert np.isfinite(dataset.boxes_xywh).all()
    assert (dataset.boxes_xywh[:, 2:] > 0).all()
