"""A data set is known again wherever it lies, and every edit shows."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from detector.data.fingerprint import fingerprint
from detector.data.formats import open_dataset
from detector.data.formats.coco import load_coco
from detector.errors import DatasetError

Content = dict[str, Any]
Write = Callable[..., tuple[Path, Path]]


def test_place_and_name_do_not_matter(coco: Content, write_coco: Write, tmp_path: Path) -> None:
    file, images = write_coco(coco)
    first = fingerprint(load_coco(file, images, None, "made"))
    assert len(first) == 64
    assert int(first, 16) >= 0
    moved = shutil.copytree(images, tmp_path / "else" / "where")
    assert fingerprint(load_coco(file, moved, None, "other")) == first
    assert fingerprint(load_coco(file, images, None, "made").subset(range(3))) == first


@pytest.mark.parametrize(
    "edit",
    [
        lambda content: content["annotations"][0].update(bbox=[1, 2, 10, 5.001]),
        lambda content: content["annotations"][0].update(category_id=2),
        lambda content: content["annotations"][0].update(iscrowd=1),
        lambda content: content["annotations"][0].update(area=33),
        lambda content: content["annotations"][0].update(image_id=12),
        lambda content: content["annotations"].pop(),
        lambda content: content["images"][2].update(id=13),
        lambda content: content["images"][2].update(width=41),
        lambda content: content["images"][2].update(file_name="b.png"),
        lambda content: content["images"].pop(),
        lambda content: content["categories"][0].update(name="zebras"),
        lambda content: content["images"].reverse(),
    ],
)
def test_D11_every_edit_of_the_annotations_shows(
    coco: Content, write_coco: Write, edit: Callable[[Content], object]
) -> None:
    edited = copy.deepcopy(coco)
    edit(edited)
    before = fingerprint(load_coco(*write_coco(coco), None, "made"))
    assert fingerprint(load_coco(*write_coco(edited), None, "made")) != before


def test_D11_edited_images_and_class_lists_show(coco: Content, write_coco: Write) -> None:
    file, images = write_coco(coco)
    dataset = load_coco(file, images, None, "made")
    before = fingerprint(dataset)
    assert fingerprint(load_coco(file, images, ("zebra", "cow"), "made")) != before
    with (images / "a.png").open("ab") as image:
        image.write(b"\0")
    assert fingerprint(dataset) != before
    (images / "a.png").unlink()
    with pytest.raises(DatasetError, match=r"a.png: cannot be read"):
        fingerprint(dataset)


def test_no_images_and_odd_names(coco: Content, write_coco: Write) -> None:
    file, images = write_coco(coco)
    odd = "a\udce9\n🐴.png"
    (images / "a.png").rename(images / odd)
    coco["images"][0]["file_name"] = odd
    file.write_text(json.dumps(coco), encoding="utf-8")
    dataset = load_coco(file, images, None, "made")
    assert fingerprint(dataset) != fingerprint(dataset.subset([]))


def test_real_splits_differ(shared_data: Path) -> None:
    prints = {fingerprint(open_dataset(shared_data / "bccd", split)) for split in ("train", "val", "test")}
    assert len(prints) == 3
