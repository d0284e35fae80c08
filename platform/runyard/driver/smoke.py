"""Small generated data sets for smoke runs and the demo."""

from dataclasses import replace
from pathlib import Path

from detector.data.synthetic import generate_shapes
from detector.errors import ConfigError
from runyard.runs.storage import check_format, storage_folder
from runyard.spec import ExperimentSpec

SMOKE_IMAGES = (32, 16, 96)
"""Training images, held-out images, side in pixels."""


def with_smoke_data(spec: ExperimentSpec) -> ExperimentSpec:
    """The spec with a small generated data set, which is made where it is missing."""
    data = generated_data(storage_folder(spec) / "smoke-shapes", *SMOKE_IMAGES)
    # The generated set has the splits that COCO has, whatever the recipe's data set calls its own.
    splits = replace(spec.data, train_split="train", val_split="val")
    return replace(spec, source=replace(spec.source, data=data), data=splits)


def generated_data(folder: Path, train_images: int, val_images: int, image_size: int) -> Path:
    """`generate_shapes` with seed 0 in a folder of the storage folder.

    Raises ConfigError where it cannot be written, and for a storage folder of another format.
    """
    check_format(folder.parent)
    try:
        return generate_shapes(folder, train_images=train_images, val_images=val_images, image_size=image_size, seed=0)
    except OSError as error:
        raise ConfigError(
            f"cannot be written ({error.strerror})",
            field="runtime.storage",
            file=folder,
            remedy="Name a folder with --storage that this user may write to",
        ) from error
