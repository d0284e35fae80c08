"""D7: entries that do not fit each other end a run before it starts; the first ten are named and all are counted."""

from collections.abc import Callable
from typing import Any

import pytest

from detector.errors import DatasetError
from runyard.runs.prepare import prepare

Change = Callable[[dict[str, Any]], object]


def set_in(list_name: str, row: int, key: str, value: Any) -> Change:
    return lambda content: content[list_name][row].__setitem__(key, value)


CASES: dict[str, tuple[Change, str]] = {
    "annotation for a missing image": (
        set_in("annotations", 0, "image_id", 99),
        r"annotations\.image_id: 1 of 2 name an entry that 'images' does not have: id 1 \(99\)\. Known ids .*: 1; 2",
    ),
    "image ids twice": (set_in("images", 1, "id", 1), r"images\.id: 1 values are used more than once: 1"),
    "annotation ids twice": (
        set_in("annotations", 1, "id", 1),
        r"annotations\.id: 1 values are used more than once: 1",
    ),
    "string image id": (set_in("images", 0, "id", "one"), r"images\.id: 1 of 2 must be a whole number .*'one'"),
    "string annotation id": (set_in("annotations", 0, "id", "1"), r"annotations\.id: 1 of 2 must be a whole number"),
    "huge image id": (set_in("images", 0, "id", 2**63), r"images\.id: 1 of 2 must be a whole number of at most 2\^63"),
    "huge annotation id": (set_in("annotations", 0, "id", 10**400), r"annotations\.id: 1 of 2 must be a whole number"),
    "fractional id": (set_in("images", 0, "id", 1.5), r"images\.id: 1 of 2 must be a whole number"),
    "image file that is not there": (
        set_in("images", 0, "file_name", "gone.png"),
        r"1 of the 2 images named in .*instances_train\.json are missing: 'gone\.png'",
    ),
}


@pytest.mark.parametrize(("change", "problem"), CASES.values(), ids=CASES)
def test_D7_a_run_does_not_start(data, spec_of: Callable, change: Change, problem: str) -> None:
    change(data.train.content)
    with pytest.raises(DatasetError, match=problem):
        prepare(spec_of(data))


@pytest.mark.parametrize(
    ("boxes", "problem"),
    [
        (
            [{"category_id": 1, "bbox": [1, 1, 2, 2], "image_id": 500 + n} for n in range(25)],
            r"25 of 27 .*id 12 \(509\)",
        ),
        ([{"category_id": 1, "bbox": [1, 1, 2]} for _ in range(25)], r"25 of 27 must be a list .*: id 3"),
    ],
)
def test_D7_the_first_ten_are_named_and_all_counted(
    data, spec_of: Callable, boxes: list[dict[str, Any]], problem: str
) -> None:
    data.train.add("many.png", boxes=boxes)
    with pytest.raises(DatasetError, match=problem) as caught:
        prepare(spec_of(data))
    text = str(caught.value)
    assert "; and 15 more" in text
    assert text.count("id ") == 10


def test_D7_the_largest_ids_and_images_without_annotations_are_no_mistake(data, spec_of: Callable) -> None:
    data.train.add("bare.png", boxes=[])
    for row in data.train.content["annotations"]:
        row["id"] += 2**63 - 10
    data.train.content["images"][2]["id"] = 2**63 - 1
    assert prepare(spec_of(data)).train_images == 3
