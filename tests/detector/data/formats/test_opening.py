"""Finding data sets in their folders, one class list over two splits, and the real data sets."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detector.data.formats import FORMATS, dataset_name, open_dataset, open_split, open_splits
from detector.errors import DatasetError

Content = dict[str, Any]


def _write(file: Path, content: Content) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content), encoding="utf-8")
    return file


@pytest.fixture
def lay_out(tmp_path: Path, picture: Callable[..., None]) -> Callable[..., Path]:
    """Writes annotations and pictures at the given places below a root, which it returns."""

    def write(content: Content, *places: tuple[str, str]) -> Path:
        root = tmp_path / "farm"
        for file, images in places:
            _write(root / file, content)
            for letter in "abc":
                picture(root / images / f"{letter}.png")
        return root

    return write


@pytest.mark.parametrize(
    ("file", "images", "split", "name"),
    [
        ("annotations/instances_train2017.json", "train2017", "train", "farm/train2017"),
        ("annotations/instances_train2017.json", "train2017", "train2017", "farm/train2017"),
        ("annotations/instances_val.json", "val", "val", "farm/val"),
        ("annotations/instances_default.json", "images", "default", "farm/default"),
        ("annotations/train.json", "images/train", "train", "farm/train"),
        ("valid/_annotations.coco.json", "valid", "val", "farm/valid"),
        ("val/_annotations.coco.json", "val", "valid", "farm/val"),
        ("test/_annotations.coco.json", "test", "test", "farm/test"),
    ],
)
def test_coco_layouts(
    coco: Content, lay_out: Callable[..., Path], file: str, images: str, split: str, name: str
) -> None:
    root = lay_out(coco, (file, images))
    dataset = open_dataset(root, split)
    assert dataset.name == name
    assert dataset.image_paths[0] == root / images / "a.png"


def test_test_dev_has_no_annotations_and_a_part_of_the_images(coco: Content, lay_out: Callable[..., Path]) -> None:
    del coco["annotations"]
    root = lay_out(coco, ("annotations/image_info_test-dev2017.json", "test2017"))
    dataset = open_dataset(root, "test-dev2017", classes=("zebra", "cow"))
    assert dataset.image_paths[0] == root / "test2017" / "a.png"
    assert [category.id for category in dataset.categories] == [9, 2]
    explicit = open_dataset(None, "any", annotations=root / "annotations" / "image_info_test-dev2017.json")
    assert explicit.image_paths == dataset.image_paths


def test_the_exact_name_comes_first(coco: Content, lay_out: Callable[..., Path]) -> None:
    root = lay_out(
        coco,
        ("annotations/instances_val2017.json", "val2017"),
        ("valid/_annotations.coco.json", "valid"),
        ("val/_annotations.coco.json", "val"),
    )
    assert open_dataset(root, "val").name == "farm/val"
    assert open_dataset(root, "valid").name == "farm/valid"


@pytest.mark.parametrize(
    ("file", "images", "name"),
    [
        ("exports/mine.json", "exports", "exports/mine"),
        ("exports/mine.json", "exports/images", "exports/mine"),
        ("annotations/instances_train2017.json", "train2017", "farm/train2017"),
        ("valid/_annotations.coco.json", "valid", "farm/valid"),
    ],
)
def test_a_named_file_finds_its_images(
    coco: Content, lay_out: Callable[..., Path], file: str, images: str, name: str
) -> None:
    root = lay_out(coco, (file, images))
    dataset = open_dataset(None, "train", annotations=root / file)
    assert dataset.image_paths[0] == root / images / "a.png"
    assert dataset.name == name


def test_named_files_win_over_the_folder(
    coco: Content, lay_out: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = lay_out(coco, ("train/_annotations.coco.json", "train"), ("other/mine.json", "pictures"))
    monkeypatch.chdir(root)
    dataset = open_dataset(root, "train", annotations=Path("other/mine.json"), images=Path("pictures"))
    assert dataset.image_paths[0] == root / "pictures" / "a.png"
    assert open_dataset(root, "train", images=root / "pictures").image_paths[0] == root / "pictures" / "a.png"


def test_what_is_not_there_is_told_with_what_is(tmp_path: Path, coco: Content, lay_out: Callable[..., Path]) -> None:
    with pytest.raises(DatasetError, match="no such folder"):
        open_dataset(tmp_path / "none", "train")
    with pytest.raises(DatasetError, match="no data set was named"):
        open_dataset(None, "train")
    root = lay_out(coco, ("train/_annotations.coco.json", "train"))
    with pytest.raises(DatasetError, match="is not a folder"):
        open_dataset(root / "train" / "_annotations.coco.json", "train")
    with pytest.raises(DatasetError, match="must not be empty"):
        open_dataset(root, "")
    with pytest.raises(DatasetError) as caught:
        open_dataset(root, "val")
    for part in (str(root), "annotations/instances_val.json", "valid/_annotations.coco.json", "JPEGImages", "'train/'"):
        assert part in str(caught.value)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DatasetError, match="holds: nothing"):
        open_dataset(empty, "train")
    _write(empty / "annotations" / "instances_train.json", coco)
    with pytest.raises(DatasetError, match=r"its images were looked for in .*empty/train; "):
        open_dataset(empty, "train")


def test_voc_is_found_or_said(
    tmp_path: Path, coco: Content, lay_out: Callable[..., Path], write_voc: Callable[..., Path],
    voc_xml: Callable[..., str],
) -> None:  # fmt: skip
    root = lay_out(coco, ("train/_annotations.coco.json", "train"))
    with pytest.raises(DatasetError, match="holds no VOC folder"):
        open_dataset(root, "train", format="voc")
    write_voc(root / "VOC2007", {"x": voc_xml(("cat", (1, 1, 2, 2), 0))}, {"train": "x", "test": "x"})
    with pytest.raises(DatasetError, match=r"as COCO .* and as VOC .* at once.*Say which"):
        open_dataset(root, "train")
    assert open_dataset(root, "train", format="voc").image_ids == ("x",)
    assert open_dataset(root, "train", format="coco").image_ids == (7, 0, 12)
    assert open_dataset(root, "2007:test").name == "farm/2007:test"
    with pytest.raises(DatasetError, match="has no split 'test'"):
        open_dataset(root, "test", format="coco")
    with pytest.raises(DatasetError, match="is a COCO file, and the format was said to be VOC"):
        open_dataset(root, "train", format="voc", annotations=root / "train" / "_annotations.coco.json")
    with pytest.raises(DatasetError, match="cannot be chosen for VOC"):
        open_dataset(root, "train", format="voc", images=root)


@pytest.mark.parametrize(
    ("places", "listed"),
    [
        (
            ("train/_annotations.coco.json", "valid/_annotations.coco.json", "test/_annotations.coco.json"),
            ["test", "train", "valid"],
        ),
        (
            (
                "annotations/instances_train2017.json",
                "annotations/captions_train2017.json",
                "annotations/image_info_test-dev2017.json",
            ),
            ["test-dev2017", "train2017"],
        ),
        (("elsewhere/mine.json",), []),
    ],
)
def test_the_splits_of_a_folder_are_listed(
    tmp_path: Path, coco: Content, places: tuple[str, ...], listed: list[str]
) -> None:
    for place in places:
        _write(tmp_path / place, coco)
    assert {known.name: known.splits(tmp_path) for known in FORMATS} == {"coco": listed, "voc": [], "yolo": []}


def test_a_test_split_is_opened_with_the_training_classes(coco: Content, lay_out: Callable[..., Path]) -> None:
    root = lay_out(coco, *((f"{split}/_annotations.coco.json", split) for split in ("train", "valid", "test")))
    train, _ = open_splits(root, "train", "val")
    test = open_split(root, "test", train.class_names)
    assert test.name == "farm/test"
    assert test.categories == train.categories
    with pytest.raises(DatasetError, match=r"test.*classes that the training data has none of: 'zebra' \(1 boxes\)"):
        open_split(root, "test", ("cow",))
    assert open_split(root, "test", ("cow",), drop_other_classes=True).labels.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("file", "images"),
    [
        ("annotations/instances_val.json", "val"),
        ("val/_annotations.coco.json", "val"),
        ("annotations/val.json", "images/val"),
    ],
)
def test_the_name_of_a_data_set_is_known_without_opening_it(
    coco: Content, lay_out: Callable[..., Path], file: str, images: str
) -> None:
    root = lay_out(coco, (file, images))
    for dataset, name in (
        (open_dataset(root, "val"), dataset_name(root)),
        (open_dataset(None, "val", annotations=root / file), dataset_name(None, root / file)),
    ):
        assert dataset.name.partition("/")[0] == name == "farm"
    assert dataset_name(Path("/nowhere/at all")) == "at all"


def _with_categories(content: Content, *categories: tuple[int, str]) -> Content:
    """The content with these categories instead, and its annotations cycling over them."""
    rows = [{"id": category_id, "name": name, "supercategory": "animals"} for category_id, name in categories]
    annotations = [
        annotation | {"category_id": categories[index % len(categories)][0]}
        for index, annotation in enumerate(content["annotations"])
    ]
    return content | {"categories": rows, "annotations": annotations}


@pytest.fixture
def two_splits(tmp_path: Path, coco: Content, picture: Callable[..., None]) -> Callable[[Content, Content], Path]:
    def write(train: Content, val: Content) -> Path:
        for split, content in (("train", train), ("val", val)):
            _write(tmp_path / "annotations" / f"instances_{split}.json", content)
            for letter in "abc":
                picture(tmp_path / split / f"{letter}.png")
        return tmp_path

    return write


TwoSplits = Callable[[Content, Content], Path]


def test_D4_ids_may_differ_between_the_splits(coco: Content, two_splits: TwoSplits) -> None:
    val = _with_categories(coco, (40, "cow"), (3, "zebra"))
    train, validation = open_splits(two_splits(coco, val), "train", "val")
    assert train.class_names == validation.class_names == ("cow", "zebra")
    assert [category.id for category in train.categories] == [2, 9]
    assert [category.id for category in validation.categories] == [40, 3]
    assert validation.labels.tolist() == [1, 0, 0]


def test_D4_a_class_with_boxes_in_val_alone_is_an_error(coco: Content, two_splits: TwoSplits) -> None:
    root = two_splits(coco, _with_categories(coco, (2, "Cow"), (9, "zebra")))
    with pytest.raises(DatasetError) as caught:
        open_splits(root, "train", "val")
    for part in ("instances_val.json", "instances_train.json", "'Cow' (2 boxes)", "'cow', 'zebra'"):
        assert part in str(caught.value)
    supercategory_used = coco | {"annotations": [coco["annotations"][0] | {"category_id": 0}]}
    with pytest.raises(DatasetError, match=r"'animals' \(1 boxes\)"):
        open_splits(two_splits(coco, supercategory_used), "train", "val")


def test_D6_a_class_may_be_absent_from_val(
    coco: Content, two_splits: TwoSplits, caplog: pytest.LogCaptureFixture
) -> None:
    train, val = open_splits(two_splits(coco, _with_categories(coco, (5, "zebra"))), "train", "val")
    assert val.class_names == train.class_names == ("cow", "zebra")
    assert [category.id for category in val.categories] == [6, 5]
    assert set(val.labels.tolist()) == {1}
    assert "has nothing of these classes: 'cow'" in caplog.text


def test_a_stated_class_must_be_in_both_files(
    coco: Content, two_splits: TwoSplits, caplog: pytest.LogCaptureFixture
) -> None:
    root = two_splits(coco, _with_categories(coco, (2, "Cow"), (9, "zebra")))
    with caplog.at_level(logging.INFO):
        train, val = open_splits(root, "train", "val", classes=("zebra",))
    assert (train.labels.tolist(), val.labels.tolist()) == ([0], [0])
    assert "left out: 'Cow'" in caplog.text
    with pytest.raises(DatasetError, match=r"instances_val.json: classes: .*'cow'. Did you mean 'Cow'"):
        open_splits(root, "train", "val", classes=("cow", "zebra"))


def test_voc_splits_share_the_training_classes(
    tmp_path: Path, write_voc: Callable[..., Path], voc_xml: Callable[..., str]
) -> None:
    box = (1, 1, 5, 5)
    texts = {
        "a": voc_xml(("red", box, 0), ("white", box, 0)),
        "b": voc_xml(("white", box, 0)),
        "c": voc_xml(("Red", box, 0)),
    }
    write_voc(tmp_path, texts, {"train": "a", "val": "b", "test": "c"})
    train, val = open_splits(tmp_path, "train", "val")
    assert train.categories == val.categories
    assert val.labels.tolist() == [1]
    assert open_splits(tmp_path, "train", "val", classes=("red",))[1].offsets.tolist() == [0, 0]
    with pytest.raises(DatasetError, match=r"\(test\): .*has boxes of classes that .* \(train\) has none of: 'Red'"):
        open_splits(tmp_path, "train", "test")


def test_aquarium(shared_data: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        train, val = open_splits(shared_data / "aquarium", "train", "val")
    assert (len(train), len(val)) == (448, 127)
    assert (len(train.labels), len(val.labels)) == (3324, 909)
    assert train.class_names == ("fish", "jellyfish", "penguin", "puffin", "shark", "starfish", "stingray")
    assert [category.id for category in val.categories] == [1, 2, 3, 4, 5, 6, 7]
    assert np.bincount(train.labels).tolist() == [1961, 385, 330, 175, 259, 78, 136]
    assert "'creatures'" in caplog.text


def test_coco_slice(shared_data: Path) -> None:
    train, val = open_splits(shared_data / "coco2017_slice", "train", "val")
    assert (len(train), len(val)) == (32, 57)
    assert train.name == "coco2017_slice/train2017"
    assert len(train.categories) == 80
    assert (train.categories[79].id, train.categories[79].name) == (90, "toothbrush")
    assert (int(train.is_crowd.sum()), int(val.is_crowd.sum())) == (3, 7)
    assert train.image_ids[0] == 30
    assert train.boxes_xywh[0].tolist() == [204.86, 31.02, 254.88, 324.12]
    assert train.areas[0] == 47675.66289999999


def test_bccd(shared_data: Path) -> None:
    train, val = open_splits(shared_data / "bccd", "trainval", "test")
    assert (len(train), len(val)) == (292, 72)
    assert train.class_names == val.class_names == ("Platelets", "RBC", "WBC")
    assert len(train.labels) + len(val.labels) == 4888
    first = open_dataset(shared_data / "bccd" / "BCCD", "train").subset([0])
    assert first.image_ids == ("BloodImage_00001",)
    assert first.box_convention == "inclusive"
