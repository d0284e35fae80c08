"""B35: where a devkit lacks a year, the remedy names image sets that are there."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detector.data.formats import open_dataset, open_splits
from detector.errors import DatasetError

XML = (
    "<annotation><size><width>40</width><height>30</height></size><object><name>cat</name>"
    "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object></annotation>"
)


@pytest.fixture(params=["devkit", "one folder"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    tree = tmp_path / "VOCdevkit" / "VOC2012"
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (tree / folder).mkdir(parents=True)
    for stem in ("a", "b"):
        (tree / "Annotations" / f"{stem}.xml").write_text(XML)
        Image.fromarray(np.zeros((30, 40, 3), dtype=np.uint8)).save(tree / "JPEGImages" / f"{stem}.jpg")
    for name, lines in (("train", "a"), ("val", "b"), ("trainval", "a\nb"), ("cat_train", "a 1"), ("cat_val", "b 1")):
        (tree / "ImageSets" / "Main" / f"{name}.txt").write_text(lines)
    return tree if request.param == "one folder" else tree.parent


def test_B35_the_remedy_for_voc2012_alone_works(root: Path) -> None:
    with pytest.raises(DatasetError, match="has no VOC2007") as caught:
        open_splits(root, "2007:trainval+2012:trainval", "2007:test")
    remedy = str(caught.value).rpartition("found ")[2]
    named = re.findall(r"\d{4}:\w+(?=[;.])", remedy)
    assert named == ["2012:train", "2012:trainval", "2012:val"]
    assert "--data.train-split and --data.val-split" in remedy
    for split in named:
        assert len(open_dataset(root, split)) >= 1
