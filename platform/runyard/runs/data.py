"""Data sets of a command: opened when they are needed, once each, with every image that will be read verified.

Imports no ray, no mlflow and no tyro.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from detector.data.formats import dataset_name as name_of
from detector.data.formats import open_split, open_splits
from detector.data.images.files import FileStatus
from detector.data.samples import Dataset
from detector.errors import ConfigError
from runyard.runs.data_findings import log_mistakes
from runyard.runs.images.check import check_splits, check_validation, require_usable
from runyard.runs.storage import storage_folder
from runyard.spec import ExperimentSpec


class OpenedData:
    """Splits by what they are read with; one object serves all trials of a command."""

    def __init__(self) -> None:
        self._opened: dict[object, Any] = {}
        self.status = FileStatus()
        """Shared by the steps of a start, so that each file is looked up once."""

    def splits(self, spec: ExperimentSpec) -> tuple[Dataset, Dataset]:
        """Training and validation split; raises as `open_data` does."""
        data = spec.data
        key = (_selection(spec), data.train_split, data.train_limit, data.min_image_side_px)
        found: tuple[Dataset, Dataset] = self._once(key, lambda: open_data(spec, self.status))
        return found

    def validation(self, spec: ExperimentSpec, classes: tuple[str, ...]) -> Dataset:
        """Validation split alone, with the classes of a trained detector; raises as `open_validation` does."""
        key = (_selection(spec), classes)
        found: Dataset = self._once(key, lambda: open_validation(spec, classes, self.status))
        return found

    def _once(self, key: object, read: Callable[[], Any]) -> Any:
        if key not in self._opened:
            self._opened[key] = read()
        return self._opened[key]


def dataset_name(spec: ExperimentSpec) -> str:
    """Name of the data set, for folders; nothing is opened. ConfigError where no data set was named."""
    _require_source(spec)
    return name_of(spec.source.data, spec.source.train_annotations)


def open_data(spec: ExperimentSpec, status: FileStatus | None = None) -> tuple[Dataset, Dataset]:
    """Training and validation split, validated; DatasetError and ConfigError for what has to be mended.

    Every image that the run would read is decoded once (`runtime.check_images`); unusable ones are an error or left
    out, as `data.unusable_images` says.
    """
    _require_check(spec)
    train, val = open_unchecked(spec)
    status = status or FileStatus()
    log_mistakes(train, val, status)
    if not spec.runtime.check_images:
        return train, val
    checked = check_splits(train, val, spec.data, storage_folder(spec), status)
    require_usable(checked, spec.data)
    return checked[0].dataset, checked[1].dataset


def open_validation(spec: ExperimentSpec, classes: tuple[str, ...], status: FileStatus | None = None) -> Dataset:
    """`open_data` for the validation split alone: the training images need not be at hand."""
    _require_source(spec)
    _require_check(spec)
    source = spec.source
    val = open_split(
        source.data,
        spec.data.val_split,
        classes,
        drop_other_classes=spec.data.classes is not None,
        format=source.format,
        annotations=source.val_annotations,
        images=source.val_images,
    )
    val = _limited(val, spec.data.val_limit)
    if not spec.runtime.check_images:
        return val
    checked = check_validation(val, spec.data, storage_folder(spec), status)
    require_usable([checked], spec.data)
    return checked.dataset


def open_unchecked(spec: ExperimentSpec) -> tuple[Dataset, Dataset]:
    """`open_data` by the annotations alone."""
    _require_source(spec)
    source = spec.source
    train, val = open_splits(
        source.data,
        spec.data.train_split,
        spec.data.val_split,
        format=source.format,
        classes=spec.data.classes,
        train_annotations=source.train_annotations,
        train_images=source.train_images,
        val_annotations=source.val_annotations,
        val_images=source.val_images,
    )
    return train, _limited(val, spec.data.val_limit)


def _selection(spec: ExperimentSpec) -> tuple[object, ...]:
    data, check = spec.data, spec.runtime.check_images
    return (
        spec.source,
        data.val_split,
        data.val_limit,
        data.classes,
        check,
        data.unusable_images,
        data.max_skipped_fraction,
    )


def _limited(val: Dataset, limit: int | None) -> Dataset:
    return val if limit is None else val.subset(np.arange(min(limit, len(val))))


def _require_source(spec: ExperimentSpec) -> None:
    if spec.source.data is None and spec.source.train_annotations is None:
        raise ConfigError(
            "no data set was named",
            field="source.data",
            remedy="Give its folder with --data; --smoke runs on a small generated one",
        )


def _require_check(spec: ExperimentSpec) -> None:
    if spec.data.unusable_images == "skip" and not spec.runtime.check_images:
        raise ConfigError(
            "'skip' needs the image check",
            field="data.unusable_images",
            value="skip",
            remedy="Drop --no-check-images",
        )
