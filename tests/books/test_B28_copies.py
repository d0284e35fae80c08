"""B28: validation images that are training images, and files named by two entries, are said before a run starts."""

import builtins
import io
import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from rich.console import Console

from detector.data import copies
from detector.data.copies import repeated_files, shared_images
from detector.data.formats import open_splits
from detector.data.images.files import FileStatus
from detector.data.samples import Dataset
from runyard.runs.doctor import check_data
from runyard.runs.prepare import prepare
from runyard.spec import ExperimentSpec


@pytest.fixture
def data(tiny_data: Path, tmp_path: Path) -> Path:
    """A copy whose validation images 1 and 2 are training images: by content and by a hard link."""
    folder = tmp_path / "shapes"
    shutil.copytree(tiny_data, folder)
    shutil.copy(folder / "train" / "000003.jpg", folder / "val" / "000001.jpg")
    (folder / "val" / "000002.jpg").unlink()
    os.link(folder / "train" / "000004.jpg", folder / "val" / "000002.jpg")
    file = folder / "annotations" / "instances_val.json"
    train = {
        image["id"]: image for image in json.loads((folder / "annotations/instances_train.json").read_text())["images"]
    }
    content = json.loads(file.read_text())
    for image, source in zip(content["images"][:2], (train[3], train[4]), strict=True):
        image |= {side: source[side] for side in ("width", "height")}
    file.write_text(json.dumps(content))
    return folder


def test_B28_shared_images_are_found_by_file_and_by_content(data: Path, tiny_data: Path) -> None:
    found = shared_images(*open_splits(data, "train", "val"))
    assert [(image.validation.name, image.training.name, image.same_file) for image in found] == [
        ("000001.jpg", "000003.jpg", False),
        ("000002.jpg", "000004.jpg", True),
    ]
    assert shared_images(*open_splits(tiny_data, "train", "val")) == []
    train, _ = open_splits(data, "train", "val")
    assert len(shared_images(train, train)) == len(train)


def test_B28_only_files_of_equal_size_are_read(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, val = open_splits(data, "train", "val")
    read: list[str] = []
    sample = copies._sample
    monkeypatch.setattr(copies, "_sample", lambda path: read.append(path.name) or sample(path))
    assert len(shared_images(train, val)) == 2
    sizes = {path.stat().st_size for path in train.image_paths} & {path.stat().st_size for path in val.image_paths}
    assert len(read) <= sum(path.stat().st_size in sizes for path in (*train.image_paths, *val.image_paths))
    assert len(read) < 10


def test_B28_files_of_equal_size_with_other_content_are_not_copies(data: Path) -> None:
    copy, source = data / "val" / "000001.jpg", data / "train" / "000003.jpg"
    content = bytearray(source.read_bytes())
    content[-3] ^= 1
    copy.write_bytes(content)
    assert [image.validation.name for image in shared_images(*open_splits(data, "train", "val"))] == ["000002.jpg"]


def test_B28_a_run_and_doctor_say_so(data: Path, tiny_spec: ExperimentSpec, caplog: pytest.LogCaptureFixture) -> None:
    spec = replace(tiny_spec, source=replace(tiny_spec.source, data=data))
    said = "2 of 5 validation images are training images too, so that AP is flattered: "
    with caplog.at_level(logging.WARNING):
        prepare(spec)
    assert said in caplog.text
    console = Console(record=True, width=500)
    check_data(spec, console)
    assert (
        f"warning: {said}{data / 'val/000001.jpg'} is a copy of {data / 'train/000003.jpg'}; " in console.export_text()
    )


def test_B28_two_entries_of_one_file_are_said(
    data: Path, tiny_spec: ExperimentSpec, caplog: pytest.LogCaptureFixture
) -> None:
    file = data / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    content["images"].append(
        {**content["images"][0], "id": 900, "file_name": "../train/000001.jpg".removeprefix("../train/")}
    )
    content["annotations"].append({**content["annotations"][0], "id": 9000, "image_id": 900})
    file.write_text(json.dumps(content))
    train, _ = open_splits(data, "train", "val")
    assert [path.name for path in repeated_files(train)] == ["000001.jpg"]
    with caplog.at_level(logging.WARNING):
        prepare(replace(tiny_spec, source=replace(tiny_spec.source, data=data)))
    assert "shapes/train: 1 image files are named by several entries" in caplog.text


def test_B28_each_file_is_looked_up_once(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, val = open_splits(data, "train", "val")
    asked: list[Path] = []
    stat = Path.stat
    monkeypatch.setattr(Path, "stat", lambda path, **options: asked.append(path) or stat(path, **options))
    status = FileStatus()
    for _ in range(2):
        shared_images(train, val, status)
    assert sorted(asked) == sorted({*train.image_paths, *val.image_paths})


def files_of_one_size(folder: Path, count: int, content: Callable[[int], bytes]) -> Dataset:
    """A split of `count` image files, of which only the paths matter."""
    folder.mkdir()
    paths = [folder / f"{number:04}.bmp" for number in range(count)]
    for number, path in enumerate(paths):
        path.write_bytes(content(number))
    return cast("Dataset", SimpleNamespace(image_paths=paths))


@pytest.mark.parametrize("where", ["middle", "end"])
def test_B28_the_comparison_is_linear_in_the_number_of_files_of_one_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Uncompressed images have one size; here they differ in the middle, or agree there and differ at the end."""

    def content(number: int) -> bytes:
        differs = number.to_bytes(4, "big")
        return bytes(9000) + differs + bytes(9000) if where == "middle" else bytes(18000) + differs

    train = files_of_one_size(tmp_path / "train", 60, content)
    val = files_of_one_size(tmp_path / "val", 40, lambda number: content(1000 + number if number else 7))
    counts: Counter[str] = Counter()
    opened = io.open

    def count_opened(*arguments: Any, **options: Any) -> Any:
        counts["opened"] += 1
        return opened(*arguments, **options)

    class CountedStatus(FileStatus):
        def __call__(self, path: Path) -> os.stat_result:
            counts["status"] += 1
            return super().__call__(path)

    for module in (io, builtins):
        monkeypatch.setattr(module, "open", count_opened)
    found = shared_images(train, val, CountedStatus())
    assert [(image.validation.name, image.training.name, image.same_file) for image in found] == [
        ("0000.bmp", "0007.bmp", False)
    ]
    files = 60 + 40
    assert counts["status"] <= 2 * files
    assert counts["opened"] <= 2 * files


def test_B28_a_missing_validation_image_and_an_empty_training_image_are_left_to_the_image_check(tmp_path: Path) -> None:
    train = files_of_one_size(tmp_path / "train", 1, lambda number: b"")
    val = files_of_one_size(tmp_path / "val", 1, lambda number: b"content")
    val.image_paths[0].unlink()
    assert shared_images(train, val) == []
