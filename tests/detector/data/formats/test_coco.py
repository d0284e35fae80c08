"""COCO files, sound and spoilt."""

import copy
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from detector.data import json_reading
from detector.data.formats.coco import load_coco
from detector.errors import DatasetError

Write = Callable[..., tuple[Path, Path]]
Content = dict[str, Any]


def test_columns_follow_images_and_labels_follow_category_ids(coco: Content, write_coco: Write) -> None:
    file, images = write_coco(coco)
    dataset = load_coco(file, images, None, "made/train")
    assert dataset.name == "made/train"
    assert dataset.class_names == ("cow", "zebra")
    assert [category.id for category in dataset.categories] == [2, 9]
    assert dataset.image_ids == (7, 0, 12)
    assert dataset.image_paths == tuple(images / f"{letter}.png" for letter in "abc")
    assert dataset.image_sizes.tolist() == [[30, 40]] * 3
    assert dataset.offsets.tolist() == [0, 1, 3, 3]
    assert dataset.boxes_xywh.tolist() == [[0.5, 0.5, 4, 4], [1, 2, 10, 5], [3, 3, 20, 20]]
    assert dataset.labels.tolist() == [0, 1, 0]
    assert dataset.areas.tolist() == [16, 33.5, 400]  # a missing area is w * h
    assert dataset.is_crowd.tolist() == [False, False, True]
    assert not dataset.is_difficult.any()
    assert dataset.box_convention == "half_open"
    boxes, labels = dataset.training_boxes(1)
    assert boxes.tolist() == [[1, 2, 11, 7]]
    assert labels.tolist() == [1]


def test_a_stated_class_list_sets_the_order_and_drops_the_rest(
    coco: Content, write_coco: Write, caplog: pytest.LogCaptureFixture
) -> None:
    file, images = write_coco(coco)
    both = load_coco(file, images, ("zebra", "cow"), "made")
    assert both.class_names == ("zebra", "cow")
    assert both.labels.tolist() == [1, 0, 1]
    with caplog.at_level(logging.INFO):
        one = load_coco(file, images, ("zebra",), "made")
    assert one.offsets.tolist() == [0, 0, 1, 1]
    assert "2 annotations of classes outside the stated list are left out: 'cow'" in caplog.text
    with pytest.raises(DatasetError, match=r"Did you mean 'zebra'.*'cow'"):
        load_coco(file, images, ("zebre",), "made")


def test_an_unused_category_stays_unless_it_is_a_supercategory(
    coco: Content, write_coco: Write, caplog: pytest.LogCaptureFixture
) -> None:
    coco["categories"].append({"id": 4, "name": "lynx", "supercategory": "lynx"})
    with caplog.at_level(logging.INFO):
        assert load_coco(*write_coco(coco), None, "made").class_names == ("cow", "lynx", "zebra")
    assert "'animals'" in caplog.text
    coco["annotations"][0]["category_id"] = 0
    assert load_coco(*write_coco(coco), None, "made").class_names == ("animals", "cow", "lynx", "zebra")


def test_a_supercategory_may_share_its_name_with_its_class(coco: Content, write_coco: Write) -> None:
    coco["categories"] = [
        {"id": 0, "name": "cow", "supercategory": "none"},
        {"id": 2, "name": "cow", "supercategory": "cow"},
        {"id": 9, "name": "zebra", "supercategory": "cow"},
    ]
    dataset = load_coco(*write_coco(coco), None, "made")
    assert [category.id for category in dataset.categories] == [2, 9]
    coco["annotations"][0]["category_id"] = 0
    with pytest.raises(DatasetError, match="used by several categories: 'cow'"):
        load_coco(*write_coco(coco), None, "made")


def test_no_annotations_at_all_is_a_data_set(coco: Content, write_coco: Write) -> None:
    coco["annotations"] = []
    dataset = load_coco(*write_coco(coco), None, "made")
    assert dataset.offsets.tolist() == [0, 0, 0, 0]
    assert dataset.boxes_xywh.shape == (0, 4)
    assert dataset.training_boxes(0)[0].shape == (0, 4)


def test_unlabelled_test_images(coco: Content, write_coco: Write) -> None:
    del coco["annotations"]
    assert len(load_coco(*write_coco(coco), None, "made", labelled=False)) == 3


def test_odd_boxes_are_kept_as_given_and_counted(
    coco: Content, write_coco: Write, caplog: pytest.LogCaptureFixture
) -> None:
    odd = [[5, 5, 0, 9], [-3, -3, 10, 10], [100, 100, 5, 5], [-10, -10, 500, 500]]
    coco["annotations"] = [{"id": index, "image_id": 7, "category_id": 2, "bbox": box} for index, box in enumerate(odd)]
    dataset = load_coco(*write_coco(coco), None, "made")
    assert dataset.boxes_xywh.tolist() == odd
    assert "1 boxes without area, 1 outside their image, 2 partly outside" in caplog.text
    assert dataset.training_boxes(0)[0].tolist() == [[0, 0, 7, 7], [0, 0, 40, 30]]


def test_a_thousand_boxes_on_one_image(coco: Content, write_coco: Write) -> None:
    coco["annotations"] = [
        {"id": index, "image_id": 12, "category_id": 2, "bbox": [index % 30, 1, 5, 5]} for index in range(1000)
    ]
    dataset = load_coco(*write_coco(coco), None, "made")
    assert dataset.offsets.tolist() == [0, 0, 0, 1000]
    assert dataset.boxes_xywh[:, 0].tolist() == [index % 30 for index in range(1000)]


def test_floats_where_integers_belong_are_taken_if_whole(coco: Content, write_coco: Write) -> None:
    for annotation in coco["annotations"]:
        for key in ("id", "image_id", "category_id"):
            annotation[key] = float(annotation[key])
        annotation["iscrowd"] = bool(annotation.get("iscrowd"))
    coco["images"][0] |= {"id": 7.0, "width": 40.0}
    coco["categories"][0]["id"] = 9.0
    dataset = load_coco(*write_coco(coco), None, "made")
    assert dataset.image_ids == (7, 0, 12)
    assert all(type(image_id) is int for image_id in dataset.image_ids)
    assert dataset.is_crowd.tolist() == [False, False, True]


def test_a_missing_size_is_read_from_the_file(coco: Content, write_coco: Write) -> None:
    del coco["images"][1]["height"]
    coco["images"][2]["width"] = None
    assert load_coco(*write_coco(coco), None, "made").image_sizes.tolist() == [[30, 40]] * 3


def test_ground_truth_alone_needs_no_image_files(coco: Content, write_coco: Write, tmp_path: Path) -> None:
    for image in coco["images"]:
        image["file_name"] = "/elsewhere/x.jpg"
    del coco["images"][1]["width"], coco["images"][2]["file_name"]
    file, _ = write_coco(coco)
    dataset = load_coco(file, None, None, "made")
    assert dataset.image_ids == (7, 0, 12)
    assert dataset.image_sizes.tolist() == [[30, 40], [0, 0], [30, 40]]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("bbox", [1, 2, 3]),
        ("bbox", [1, 2, "3", 4]),
        ("bbox", [1, 2, None, 4]),
        ("bbox", [1, 2, True, 4]),
        ("bbox", [1, 2, -3, 4]),
        ("bbox", [1, 2, 3, -0.5]),
        ("bbox", []),
        ("bbox", "1234"),
        ("bbox", {"x": 1, "y": 2, "w": 3, "h": 4}),
        ("bbox", None),
        ("bbox", [[1], 2, 3, 4]),
        ("bbox", [10**400, 2, 3, 4]),
        ("area", "big"),
        ("area", -1),
        ("area", 10**400),
        ("iscrowd", 2),
        ("iscrowd", "no"),
        ("iscrowd", [1]),
        ("image_id", "7"),
        ("image_id", 7.5),
        ("image_id", None),
        ("image_id", True),
        ("image_id", 2**63),
        ("image_id", 1e300),
        ("category_id", "cow"),
        ("id", "first"),
        ("id", [1]),
        ("id", 2**80),
    ],
)
def test_D3_D7_bad_values_are_named_with_the_annotation(coco: Content, write_coco: Write, key: str, value: Any) -> None:
    coco["annotations"][0][key] = value
    with pytest.raises(DatasetError, match=rf"annotations\.{key}: 1 of 3 ") as caught:
        load_coco(*write_coco(coco), None, "made")
    assert ("id 5" if key != "id" else "number 0") in str(caught.value)


@pytest.mark.parametrize("literal", ["NaN", "-Infinity", "1e999"])
def test_D3_boxes_that_are_not_finite(coco: Content, write_coco: Write, literal: str) -> None:
    text = json.dumps(coco).replace("[1, 2, 10, 5]", f"[1, 2, {literal}, 5]")
    with pytest.raises(DatasetError, match=r"finite|the literal -?(NaN|Infinity) at line 1, column \d+"):
        load_coco(*write_coco(text), None, "made")


@pytest.mark.parametrize(
    ("list_name", "changes", "message"),
    [
        ("images", {"id": "7"}, r"images\.id: 1 of 3 must be a whole number"),
        ("images", {"width": 0}, r"images\.width: 1 of 3 must be at least 1: id 0 \(0\)"),
        ("images", {"height": "30"}, r"images\.height: 1 of 3 must be a whole number"),
        ("images", {"file_name": 5}, r"images\.file_name: 1 of 3 must be a string: id 0 \(5\)"),
        ("categories", {"name": None}, r"categories\.name: 1 of 3 must be a string"),
        ("categories", {"id": 2}, r"categories\.id: 1 values are used more than once: 2"),
        ("images", {"id": 7}, r"images\.id: 1 values are used more than once: 7"),
        ("annotations", {"id": 5}, r"annotations\.id: 1 values are used more than once: 5"),
        ("annotations", {"image_id": 99}, r"name an entry that 'images' does not have: id 0 \(99\).*begin with: 0; 7"),
        ("annotations", {"category_id": 99}, r"name an entry that 'categories' does not have: id 0 \(99\)"),
    ],
)
def test_D4_D7_inconsistent_entries(
    coco: Content, write_coco: Write, list_name: str, changes: Content, message: str
) -> None:
    coco[list_name][1] |= changes
    with pytest.raises(DatasetError, match=message):
        load_coco(*write_coco(coco), None, "made")


def test_D7_the_first_ten_offenders_and_their_count(coco: Content, write_coco: Write) -> None:
    coco["annotations"] = [
        {"id": index, "image_id": 500 + index, "category_id": 2, "bbox": [1, 1, 2, 2]} for index in range(25)
    ]
    with pytest.raises(DatasetError) as caught:
        load_coco(*write_coco(coco), None, "made")
    assert "25 of 25" in str(caught.value)
    assert "id 9 (509); and 15 more" in str(caught.value)


def test_D7_missing_image_files(coco: Content, write_coco: Write) -> None:
    coco["images"] += [{"id": 100 + i, "file_name": f"sub/{i}.png", "width": 4, "height": 4} for i in range(12)]
    file, images = write_coco(coco)
    with pytest.raises(DatasetError, match=r"12 of the 15 images named in .* are missing: 'sub/0.png'.*and 2 more"):
        load_coco(file, images, None, "made")
    with pytest.raises(DatasetError, match="cannot be listed"):
        load_coco(file, images / "nowhere", None, "made")


@pytest.mark.parametrize("name", ["../a.png", "/etc/passwd", "x/../../a.png", "", ".", "..", "sub/.."])
def test_H3_file_names_cannot_leave_the_folder(coco: Content, write_coco: Write, name: str) -> None:
    coco["images"][0]["file_name"] = name
    with pytest.raises(DatasetError, match=r"file_name: 1 file names are empty, absolute or lead out"):
        load_coco(*write_coco(coco), None, "made")


@pytest.mark.parametrize("name", ["a\0b.png", "\ud800.png", "x" * 300, "no/such/folder/a.png", "a\0b/c.png"])
def test_D8_names_that_no_file_has(coco: Content, write_coco: Write, name: str) -> None:
    coco["images"][0]["file_name"] = name
    with pytest.raises(DatasetError, match="are missing") as caught:
        load_coco(*write_coco(coco), None, "made")
    str(caught.value).encode("utf-8")


def test_D8_unusual_file_names_are_read(coco: Content, write_coco: Write) -> None:
    names = ["žluťoučký \n kůň 🐴.png", os.fsdecode(b"caf\xe9.png"), "sub folder/.hidden.png"]
    for image, name in zip(coco["images"], names, strict=True):
        image["file_name"] = name
    file, images = write_coco(coco)
    (images / "sub folder").mkdir()
    for letter, name in zip("abc", names, strict=True):
        (images / f"{letter}.png").rename(images / name)
    assert load_coco(file, images, None, "made").image_paths == tuple(images / name for name in names)


def test_D10_truncated_at_any_place(coco: Content, write_coco: Write) -> None:
    text = json.dumps(coco)
    for end in range(0, len(text), 37):
        with pytest.raises(DatasetError, match=r"is not valid JSON.*cut off"):
            load_coco(*write_coco(text[:end]), None, "made")


def test_D10_byte_order_mark_is_read(coco: Content, write_coco: Write) -> None:
    assert len(load_coco(*write_coco("\ufeff" + json.dumps(coco)), None, "made")) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 200_000, "nested too deeply"),
        ('{"a":' * 200_000, "nested too deeply"),
        ("[]", "must be a JSON object at the top, is a list"),
        ("null", "must be a JSON object"),
        ('{"images": [' + "1" * 10_000 + "]}", "holds a number that cannot be read"),
        ('{"categories": {}, "images": [], "annotations": []}', "categories: must be a list"),
        ('{"categories": [3, {}], "images": [], "annotations": []}', "1 entries are not objects: number 0"),
        ('{"categories": [], "images": [{"id": 1}], "annotations": []}', "lists no categories"),
        ('{"name": "NaN \\" NaN",\n "x": NaN}', "the literal NaN at line 2, column 7"),
    ],
)
def test_D10_files_of_another_form(write_coco: Write, text: str, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        load_coco(*write_coco(text), None, "made")


def test_an_empty_split_is_an_error(coco: Content, write_coco: Write) -> None:
    coco["images"] = coco["annotations"] = []
    with pytest.raises(DatasetError, match="lists no images"):
        load_coco(*write_coco(coco), None, "made")


def test_D10_files_that_cannot_be_read(tmp_path: Path, coco: Content) -> None:
    with pytest.raises(DatasetError, match="No such file"):
        load_coco(tmp_path / "none.json", tmp_path, None, "made")
    with pytest.raises(DatasetError, match="cannot be read"):
        load_coco(tmp_path, tmp_path, None, "made")
    utf16 = tmp_path / "utf16.json"
    utf16.write_bytes(json.dumps(coco).encode("utf-16"))
    with pytest.raises(DatasetError, match="is not UTF-8 text"):
        load_coco(utf16, tmp_path, None, "made")
    sparse = tmp_path / "huge.json"
    sparse.touch()
    os.truncate(sparse, json_reading.MAX_BYTES + 1)
    with pytest.raises(DatasetError, match="larger than 4 GiB"):
        load_coco(sparse, tmp_path, None, "made")


_ODD_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=5),
    st.lists(st.integers(-5, 50) | st.floats(-50, 50) | st.text(max_size=2), max_size=5),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_is_changed_gives_a_data_set_or_a_dataset_error(
    coco: Content, write_coco: Write, data: st.DataObject
) -> None:
    content: Any = copy.deepcopy(coco)
    for _ in range(data.draw(st.integers(1, 3))):
        list_name = data.draw(st.sampled_from(("images", "annotations", "categories")))
        depth = data.draw(st.integers(0, 2))
        if depth == 0:
            content[list_name] = data.draw(_ODD_VALUES)
        elif isinstance(content[list_name], list) and content[list_name]:
            index = data.draw(st.integers(0, len(content[list_name]) - 1))
            row = content[list_name][index]
            if depth == 1 or not isinstance(row, dict) or not row:
                content[list_name][index] = data.draw(_ODD_VALUES)
            else:
                row[data.draw(st.sampled_from(sorted(row)))] = data.draw(_ODD_VALUES)
    try:
        dataset = load_coco(*write_coco(content), None, "made")
    except DatasetError as error:
        str(error).encode("utf-8")
        return
    assert np.isfinite(dataset.boxes_xywh).all()
    assert ((dataset.labels >= 0) & (dataset.labels < len(dataset.categories))).all()
    assert dataset.offsets[-1] == len(dataset.labels)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_bytes_are_changed_gives_a_data_set_or_a_dataset_error(
    coco: Content, write_coco: Write, tmp_path: Path, data: st.DataObject
) -> None:
    file, images = write_coco(coco)
    content = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(content)
    try:
        load_coco(file, images, None, "made")
    except DatasetError as error:
        str(error).encode("utf-8")
