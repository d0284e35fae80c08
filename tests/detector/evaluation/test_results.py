import json

import numpy as np
import pytest

from detector.errors import ResultFileError
from detector.evaluation.results import DetectionTable, read_coco_results, write_coco_results

GOOD = {"image_id": 100, "category_id": 7, "bbox": [1, 2, 3, 4], "score": 0.5}


@pytest.fixture
def dataset(make_dataset):
    return make_dataset([(0, 0, 0, 0, 10, 10)], images=3, classes=2)


@pytest.fixture
def read(tmp_path, dataset):
    def read(content):
        path = tmp_path / "results.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return read_coco_results(path, dataset)

    return read


def test_a_file_holds_original_ids_and_reads_back_the_same(tmp_path, dataset, make_table):
    path = tmp_path / "new" / "results.json"
    table = make_table([(2, 1, 0.1, 0.2, 1 / 3, 4, 0.7), (0, 0, 5, 6, 0, 8, 1e-9)])
    write_coco_results(table, dataset, path)
    assert json.loads(path.read_text()) == [
        {"image_id": 102, "category_id": 10, "bbox": [0.1, 0.2, 1 / 3, 4.0], "score": 0.7},
        {"image_id": 100, "category_id": 7, "bbox": [5.0, 6.0, 0.0, 8.0], "score": 1e-9},
    ]
    back = read_coco_results(path, dataset)
    for column in ("image_index", "labels", "boxes_xywh", "scores", "class_scores", "ious"):
        np.testing.assert_array_equal(getattr(back, column), getattr(table, column))


def test_the_factors_of_the_score_travel_on_request(tmp_path, dataset, make_table):
    path = tmp_path / "results.json"
    rows = [(0, 0, 0, 0, 1, 1, 0.5), (0, 0, 0, 0, 1, 1, 0.4)]
    write_coco_results(make_table(rows, class_scores=[0.9, np.nan], ious=[0.3, 0.2]), dataset, path, factors=True)
    assert [set(row) - set(GOOD) for row in json.loads(path.read_text())] == [{"class_score", "iou"}, {"iou"}]
    back = read_coco_results(path, dataset)
    np.testing.assert_array_equal(back.class_scores, [0.9, np.nan])
    np.testing.assert_array_equal(back.ious, [0.3, 0.2])


def test_names_as_image_ids(tmp_path, make_dataset, make_table):
    dataset = make_dataset([], images=2, image_ids=["2007_000027", "2007_000032"])
    write_coco_results(make_table([(1, 0, 0, 0, 1, 1, 0.5)]), dataset, tmp_path / "r.json")
    assert read_coco_results(tmp_path / "r.json", dataset).image_index.tolist() == [1]


def test_an_empty_file_and_whole_numbers_as_floats(read):
    assert len(read([])) == 0
    table = read([GOOD | {"image_id": 101.0, "category_id": 10.0, "score": 1}])
    assert (table.image_index.tolist(), table.labels.tolist(), table.scores.tolist()) == ([1], [1], [1.0])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"image_id": 99}, "image_id 99 is not among the 3 images"),
        ({"image_id": "100"}, "image_id '100' is not among"),
        ({"image_id": True}, "image_id True"),
        ({"image_id": [100]}, "image_id \\[100\\]"),
        ({"category_id": 8}, "category_id 8 is not among the 2 categories"),
        ({"category_id": None}, "category_id None"),
        ({"bbox": [1, 2, 3]}, "not four finite numbers"),
        ({"bbox": [1, 2, 3, 4, 5]}, "not four finite numbers"),
        ({"bbox": [1, 2, "3", 4]}, "not four finite numbers"),
        ({"bbox": [1, 2, True, 4]}, "not four finite numbers"),
        ({"bbox": [1, 2, float("nan"), 4]}, "not four finite numbers"),
        ({"bbox": [1, 2, 10**400, 4]}, "not four finite numbers"),
        ({"bbox": "1234"}, "not four finite numbers"),
        ({"bbox": None}, "not four finite numbers"),
        ({"bbox": [[1, 2, 3, 4]]}, "not four finite numbers"),
        ({"bbox": [1, 2, -3, 4]}, "negative width or height"),
        ({"score": float("nan")}, "score nan is not a finite number"),
        ({"score": float("inf")}, "score inf is not a finite number"),
        ({"score": "0.5"}, "score '0.5' is not a finite number"),
        ({"score": None}, "score None is not a finite number"),
        ({"score": 10**400}, "is not a finite number"),
        ({"class_score": "high"}, "class_score 'high' is not a number"),
        ({"iou": 10**400}, "iou 1000.* is not a number"),
    ],
)
def test_a_bad_value_is_named_with_its_row(read, change, said):
    with pytest.raises(ResultFileError, match=f"results.json: 1 of 2 rows cannot be scored: row 1: .*{said}") as caught:
        read([GOOD, GOOD | change])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("missing", ["image_id", "category_id", "bbox", "score"])
def test_a_missing_member_is_named(read, missing):
    with pytest.raises(ResultFileError, match=f"row 0: has no {missing}"):
        read([{key: value for key, value in GOOD.items() if key != missing}])


def test_rows_that_are_no_objects(read):
    for row in (None, 3, "x", []):
        with pytest.raises(ResultFileError, match="row 1: is not an object but"):
            read([GOOD, row])


def test_the_first_ten_offenders_are_named_and_all_are_counted(read):
    with pytest.raises(ResultFileError, match="25 of 26 rows") as caught:
        read([GOOD] + [GOOD | {"image_id": 1000 + i} for i in range(25)])
    assert str(caught.value).count("is not among") == 10
    assert "row 10: image_id 1009" in str(caught.value)
    assert "and 15 more" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('[{"image_id": 1, "bb', "is not a JSON file"),
        ("", "is not a JSON file"),
        ("[" * 200_000, "is not a JSON file"),
        ("[" + "1" * 5000 + "]", "is not a JSON file"),
        ('{"images": [], "annotations": []}', "is not a list of detections.*'annotations', 'images'"),
        ("3", "is not a list of detections"),
    ],
)
def test_files_that_are_no_result_files(read, content, said):
    with pytest.raises(ResultFileError, match=said):
        read(content)


def test_files_that_cannot_be_read(tmp_path, dataset):
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00[")
    for path in (tmp_path / "absent.json", tmp_path, tmp_path / "binary.json"):
        with pytest.raises(ResultFileError, match=path.name):
            read_coco_results(path, dataset)


def test_a_byte_order_mark_is_no_obstacle(tmp_path, dataset):
    (tmp_path / "r.json").write_text("\ufeff" + json.dumps([GOOD]), encoding="utf-8")
    assert len(read_coco_results(tmp_path / "r.json", dataset)) == 1


def test_concatenated_tables_do_not_depend_on_who_had_which_image(make_table):
    rows = [(image, 0, x, 0, 1, 1, 0.5) for image in range(4) for x in range(3)]
    whole = make_table(rows)
    shared_out = DetectionTable.concatenate([make_table(rows[6:9] + rows[0:3]), make_table(rows[3:6] + rows[9:])])
    np.testing.assert_array_equal(shared_out.boxes_xywh, whole.boxes_xywh)
    np.testing.assert_array_equal(shared_out.image_index, whole.image_index)
    assert len(DetectionTable.concatenate([])) == len(DetectionTable.concatenate([DetectionTable.empty()])) == 0


def test_a_table_checks_its_columns(make_table):
    with pytest.raises(ValueError, match="differ in length"):
        DetectionTable(np.zeros(2, dtype=np.int64), np.zeros(1, dtype=np.int64), np.zeros((1, 4)), np.zeros(1))
    with pytest.raises(ValueError, match="diverged"):
        make_table([(0, 0, 0, 0, 1, 1, np.nan)])
    selected = make_table([(0, 0, 0, 0, 1, 1, 0.5), (1, 0, 0, 0, 1, 1, 0.4)], ious=[0.1, 0.2]).select(np.array([1]))
    assert (selected.image_index.tolist(), selected.ious.tolist()) == ([1], [0.2])
