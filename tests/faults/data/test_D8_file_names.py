"""D8: images may be called anything that a file can be: they are read, drawn, exported and complained of."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from detector.data.cache import load_dataset
from runyard.cli import main
from runyard.spec import from_dict
from runyard.tracking.journal import read

NAMES = (
    "žluťoučký kůň 🐴.png", "two words.png", " leading and trailing .png", "line\nbreak\r.png", "tab\t.png",
    "\u202egnp.png", "e\u0301.png", os.fsdecode(b"caf\xe9.png"), os.fsdecode(b"\xff\xfe.png"), "-rf.png",
    "#frag?a=b%2e.png", "CON.png", "sub folder/[red]x[/red].png", "a'b\"c`$(touch x);.png", "n" * 240 + ".png",
)  # fmt: skip
BROKEN = (os.fsdecode(b"bro\xe9ken\n.png"), "broken 🐴.png")


@pytest.fixture
def named(data):
    """The data set with such names, in a folder with such a name; two of the images cannot be used."""
    root = data.root.with_name(os.fsdecode(b"data \xe9\n set"))
    data.root.rename(root)
    data.root, data.train.folder, data.val.folder = root, root / "train", root / "val"
    for split in (data.train, data.val):
        for name in NAMES:
            split.add(name)
        for name in BROKEN:
            split.add(name, b"no image")
    return data


def test_D8_a_run_reads_them_and_lists_the_broken_ones(named, spec_of: Callable, train_on: Callable) -> None:
    outcome = train_on(spec_of(named, unusable_images="skip", max_skipped_fraction=0.2))
    assert (outcome.prepared.train_images, outcome.metrics["val/images"]) == (2 + len(NAMES), 1 + len(NAMES))
    listed = json.loads(outcome.folder.manifest.read_text())["skipped_images"]["val"]
    assert [Path(image["file"]) for image in listed] == [named.root / "val" / name for name in BROKEN]
    spec = from_dict(json.loads(outcome.folder.spec.read_text()))
    assert spec.source.data == named.root
    val = load_dataset(outcome.folder.val_data(outcome.prepared.spec.validation_hash))
    assert [str(path.relative_to(named.root / "val")) for path in val.image_paths[1:]] == list(NAMES)
    assert [image.path.name for image in val.skipped] == list(BROKEN)
    assert {row["image_id"] for row in outcome.detections} <= set(val.image_ids)
    assert list((outcome.folder.evaluations()[0].root / "gallery").glob("*.png"))
    assert [record for record in read(outcome.folder.journal) if record.kind == "status"]


def test_D8_the_doctor_prints_them_on_one_line_each(named, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--data", str(named.write()), "--storage", str(tmp_path / "runs")]) == 2
    shown = capsys.readouterr()
    assert shown.out.count("broken 🐴.png': is not a JPEG or PNG image") == 2
    assert shown.out.count("bro\\udce9ken\\n.png': is not a JPEG or PNG image") == 2
    (line,) = shown.err.splitlines()
    assert "2 of 19 training images and 2 of 18 validation images cannot be used" in line
    line.encode("utf-8")
