"""Data sets saved by the driver and loaded by workers."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detector.data import cache
from detector.data.cache import load_dataset, save_dataset
from detector.data.formats import open_dataset
from detector.data.formats.coco import load_coco
from detector.data.samples import Dataset
from detector.errors import DatasetError

Content = dict[str, Any]
Write = Callable[..., tuple[Path, Path]]


def _assert_equal(first: Dataset, second: Dataset) -> None:
    for field in dataclasses.fields(Dataset):
        ours, theirs = getattr(first, field.name), getattr(second, field.name)
        if isinstance(ours, np.ndarray):
            assert ours.dtype == theirs.dtype
            assert np.array_equal(ours, theirs)
        else:
            assert ours == theirs
            assert type(ours) is type(theirs)


def test_round_trip(coco: Content, write_coco: Write, tmp_path: Path) -> None:
    dataset = load_coco(*write_coco(coco), None, "kůň 🐴")
    odd = dataclasses.replace(dataset, image_paths=(Path("/x/\udce9\n"), *dataset.image_paths[1:]))
    for sample in (dataset, odd, dataset.subset([]), dataset.subset([2])):
        save_dataset(sample, tmp_path / "new folder" / "train.npz")
        _assert_equal(load_dataset(tmp_path / "new folder" / "train.npz"), sample)
    assert [file.name for file in (tmp_path / "new folder").iterdir()] == ["train.npz"]


def test_round_trip_of_voc(shared_data: Path, tmp_path: Path) -> None:
    dataset = open_dataset(shared_data / "bccd", "val")
    save_dataset(dataset, tmp_path / "val.npz")
    _assert_equal(load_dataset(tmp_path / "val.npz"), dataset)


def test_a_failed_write_leaves_the_earlier_file(
    coco: Content, write_coco: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = load_coco(*write_coco(coco), None, "made")
    folder = tmp_path / "run"
    save_dataset(dataset, folder / "train.npz")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_dataset(dataset.subset([0]), folder / "train.npz")
    assert [file.name for file in folder.iterdir()] == ["train.npz"]
    _assert_equal(load_dataset(folder / "train.npz"), dataset)


def test_damaged_files_are_named(coco: Content, write_coco: Write, tmp_path: Path) -> None:
    file = tmp_path / "train.npz"
    with pytest.raises(DatasetError, match=r"train.npz: cannot be read"):
        load_dataset(file)
    save_dataset(load_coco(*write_coco(coco), None, "made"), file)
    content = file.read_bytes()
    for spoilt in (
        b"",
        b"\x80\x04K\x01.",
        content[:-100],
        content[:100],
        content.replace(b"labels.npy", b"lapels.npy"),
    ):
        file.write_bytes(spoilt)
        with pytest.raises(DatasetError, match=r"train.npz: holds no data set"):
            load_dataset(file)
    flipped = bytearray(content)
    flipped[content.index(b"boxes_xywh.npy") + 150] ^= 1
    file.write_bytes(flipped)
    with pytest.raises(DatasetError, match="holds no data set"):
        load_dataset(file)


def test_pickles_are_not_loaded(tmp_path: Path) -> None:
    file = tmp_path / "train.npz"
    np.savez(file, image_sizes=np.array([object()], dtype=object))
    with pytest.raises(DatasetError, match="holds no data set"):
        load_dataset(file)


def test_columns_of_an_earlier_version_are_refused(
    coco: Content, write_coco: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Version 1 had image sizes as width, height; read as they stand, they would be swapped."""
    file = tmp_path / "train.npz"
    with monkeypatch.context() as patch:
        patch.setattr(cache, "_VERSION", 1)
        save_dataset(load_coco(*write_coco(coco), None, "made"), file)
    with pytest.raises(DatasetError, match=r"expected columns of version 2, found version 1.*Delete it"):
        load_dataset(file)
