"""D4: category ids are names, not positions: with gaps, from 0 or 1, unsorted, another order in each split."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from detector.data.cache import load_dataset
from detector.errors import DatasetError
from runyard.runs.prepare import prepare


@pytest.mark.parametrize("ids", [(0, 1), (90, 7), (-5, 2**40)])
def test_D4_results_carry_the_file_s_own_ids(data, spec_of: Callable, train_on: Callable, ids: tuple[int, int]) -> None:
    for split in (data.train, data.val):
        split.content["categories"] = [{"id": ids[0], "name": "cat"}, {"id": ids[1], "name": "dog"}]
        for annotation in split.content["annotations"]:
            annotation["category_id"] = ids[0]
    spec = spec_of(data)
    outcome = train_on(spec)
    assert outcome.detections
    assert {row["category_id"] for row in outcome.detections} <= set(ids)
    assert {row["image_id"] for row in outcome.detections} == {1}


def test_D4_the_splits_may_order_and_number_their_classes_differently(data, spec_of: Callable) -> None:
    data.val.content["categories"] = [{"id": 4, "name": "dog"}, {"id": 9, "name": "cat"}]
    data.val.content["annotations"][0]["category_id"] = 9
    prepared = prepare(spec_of(data))
    train, val = (
        load_dataset(p) for p in (prepared.folder.train_data, prepared.folder.val_data(prepared.spec.validation_hash))
    )
    assert train.class_names == val.class_names == ("cat", "dog")
    assert [category.id for category in val.categories] == [9, 4]
    assert val.labels.tolist() == [0]


def test_D4_the_order_of_the_list_changes_nothing(data, spec_of: Callable) -> None:
    folder = prepare(spec_of(data)).folder
    before = json.loads(folder.manifest.read_text())["dataset_fingerprints"]
    data.train.content["categories"] = data.train.content["categories"][::-1]
    assert prepare(spec_of(data)).resumed
    assert json.loads(folder.manifest.read_text())["dataset_fingerprints"] == before


def renamed(content: dict[str, Any]) -> None:
    content["categories"] = [{"id": 1, "name": "tiger"}, {"id": 2, "name": "dog"}]


def unknown(content: dict[str, Any]) -> None:
    content["annotations"][0]["category_id"] = 77


def repeated(content: dict[str, Any]) -> None:
    content["categories"] = [{"id": 1, "name": "cat"}, {"id": 1, "name": "dog"}]


def namesakes(content: dict[str, Any]) -> None:
    content["categories"] = [{"id": 1, "name": "cat"}, {"id": 2, "name": "cat"}]


@pytest.mark.parametrize(
    ("split", "change", "problem"),
    [
        ("val", renamed, "has boxes of classes that .* has none of: 'tiger'"),
        (
            "train",
            unknown,
            r"annotations\.category_id: 1 of 2 name an entry that 'categories' does not have: id 1 \(77\)",
        ),
        (
            "val",
            unknown,
            r"annotations\.category_id: 1 of 1 name an entry that 'categories' does not have: id 1 \(77\)",
        ),
        ("train", repeated, r"categories\.id: 1 values are used more than once: 1"),
        ("train", namesakes, "1 class names are used by several categories: 'cat'"),
    ],
)
def test_D4_a_mismatch_is_an_error(data, spec_of: Callable, split: str, change: Callable, problem: str) -> None:
    change(getattr(data, split).content)
    with pytest.raises(DatasetError, match=problem):
        prepare(spec_of(data))
