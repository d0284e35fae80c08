"""D10: a COCO file that is cut off, of another form or lacks a member ends a run with one error that names it."""

import json
import os
from collections.abc import Callable

import pytest

from detector.data import json_reading
from detector.errors import DatasetError
from runyard.runs.prepare import prepare

REQUIRED = {
    "images": ("id", "file_name"),
    "annotations": ("id", "image_id", "category_id", "bbox"),
    "categories": ("id", "name"),
}
OPTIONAL = {
    "images": ("width", "height"),
    "annotations": ("area", "iscrowd", "segmentation"),
    "categories": ("supercategory",),
}


@pytest.fixture
def full(data):
    """Every member that COCO's files have is in every entry."""
    for split in (data.train, data.val):
        split.content["categories"] = [dict(c, supercategory="animal") for c in split.content["categories"]]
        for annotation in split.content["annotations"]:
            annotation |= {"area": 900, "iscrowd": 0, "segmentation": [[1, 1, 9, 1, 9, 9]]}
    return data


def of_each(table: dict[str, tuple[str, ...]]) -> list[tuple[str, str]]:
    return [(list_name, key) for list_name, keys in table.items() for key in keys]


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("entries", ["one", "all"])
@pytest.mark.parametrize(("list_name", "key"), of_each(REQUIRED))
def test_D10_each_required_member_is_missed(
    full, spec_of: Callable, split: str, list_name: str, key: str, entries: str
) -> None:
    rows = getattr(full, split).content[list_name]
    for row in rows[:1] if entries == "one" else rows:
        del row[key]
    count = 1 if entries == "one" else len(rows)
    message = rf"instances_{split}\.json: {list_name}\.{key}: {count} of {len(rows)} have no '{key}': "
    with pytest.raises(DatasetError, match=message):
        prepare(spec_of(full))


@pytest.mark.parametrize("list_name", REQUIRED)
@pytest.mark.parametrize("split", ["train", "val"])
def test_D10_each_list_is_missed(full, spec_of: Callable, split: str, list_name: str) -> None:
    del getattr(full, split).content[list_name]
    with pytest.raises(DatasetError, match=rf"instances_{split}\.json: has no list '{list_name}'"):
        prepare(spec_of(full))


@pytest.mark.parametrize(("list_name", "key"), of_each(OPTIONAL))
def test_D10_each_other_member_may_be_missing(full, spec_of: Callable, list_name: str, key: str) -> None:
    for split in (full.train, full.val):
        for row in split.content[list_name]:
            del row[key]
    assert prepare(spec_of(full)).train_images == 2


FORMS = {
    "empty": (lambda text: b"", "is not valid JSON: Expecting value at line 1, column 1"),
    "cut off": (lambda text: text[: len(text) // 2], "is not valid JSON: .* It may be cut off"),
    "one byte short": (lambda text: text[:-1], "is not valid JSON: .* It may be cut off"),
    "NaN": (lambda text: text.replace(b"[8, 8, 30, 30]", b"[NaN, 8, 30, 30]", 1), "holds the literal NaN at line 1"),
    "infinity": (lambda text: text.replace(b"[8, 8,", b"[-Infinity, 8,", 1), "holds the literal -Infinity at line 1"),
    "overflow": (lambda text: text.replace(b"[8, 8,", b"[1e999, 8,", 1), r"annotations\.bbox: 1 of 2 must be finite"),
    "deep list": (lambda text: b"[" * 300_000, "is nested too deeply"),
    "deep object": (lambda text: b'{"images":' * 300_000, "is nested too deeply"),
    "list": (lambda text: b"[]", "must be a JSON object at the top, is a list"),
    "UTF-16": (lambda text: text.decode().encode("utf-16"), "is not UTF-8 text"),
    "latin-1": (lambda text: text.replace(b"sound-1", b"caf\xe9"), "is not UTF-8 text"),
    "endless number": (lambda text: text.replace(b"[8, 8,", b"[" + b"8" * 9999 + b", 8,", 1), "holds a number that"),
    "a web page": (lambda text: b"<!DOCTYPE html>", "is not valid JSON"),
    "a zip archive": (lambda text: b"PK\x03\x04" + bytes(range(256)), "is not UTF-8 text"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "problem"), FORMS.values(), ids=FORMS)
def test_D10_a_file_of_another_form(data, spec_of: Callable, change: Callable, problem: str) -> None:
    spec = spec_of(data)
    data.file.write_bytes(change(data.file.read_bytes()))
    with pytest.raises(DatasetError, match=rf"instances_train\.json: .*{problem}|instances_train\.json: {problem}"):
        prepare(spec)


def test_D10_a_byte_order_mark_is_read_over(data, spec_of: Callable) -> None:
    spec = spec_of(data)
    data.file.write_bytes(b"\xef\xbb\xbf" + data.file.read_bytes())
    assert prepare(spec).train_images == 2


def test_D10_there_is_a_limit_on_size_before_anything_is_read(
    data, spec_of: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """COCO's largest file has 0.45 GB; 2 GB, which parse into some 10 GB, are read where there is memory."""
    spec = spec_of(data)
    os.truncate(data.file, json_reading.MAX_BYTES + 1)  # sparse
    monkeypatch.setattr(json, "loads", lambda *_, **__: pytest.fail("read"))
    with pytest.raises(DatasetError, match="is larger than 4 GiB"):
        prepare(spec)
