"""Check of every image before a run starts, and the policy for unusable ones.

Only images that the run would read are looked at: of the training split those to train on, of the validation split
those within `data.val_limit`. Unusable ones make the run end here ('error'), or are left out of both splits ('skip').
Left out of the validation split they would change AP in silence, so each result says how many were (val/skipped_images)
and the manifest lists them: AP is then that of the other images, which are another data set by its fingerprint.
An image whose annotations state no size needs a valid header, whatever the policy: an entry needs a size.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from detector.config import DataConfig
from detector.data.epoch_plan import trainable_images
from detector.data.health import find_unusable
from detector.data.images.files import FileStatus
from detector.data.invalid_entries import first_ten
from detector.data.samples import Dataset, UnusableImage
from detector.errors import DatasetError
from runyard.runs.images.progress_bar import ProgressBar
from runyard.runs.images.verified import image_keys, memory_of, recall, remember

_REMEDIES = {
    "error": "Mend or remove them (`runyard doctor` looks again), or leave them out with --data.unusable-images skip",
    "skip": "Mend or remove them (`runyard doctor` looks again), or raise --data.max-skipped-fraction",
}


@dataclass(frozen=True)
class CheckedSplit:
    """A split, looked at."""

    what: str
    """'training' or 'validation'."""
    dataset: Dataset
    """Without the unusable images, which its `skipped` lists."""
    images: int
    """That the run would have read."""

    @property
    def unusable(self) -> tuple[UnusableImage, ...]:
        return self.dataset.skipped


def check_splits(
    train: Dataset, val: Dataset, config: DataConfig, storage: Path, status: FileStatus | None = None
) -> tuple[CheckedSplit, CheckedSplit]:
    """Decode the images of both splits that were not verified before; show progress where that takes long.

    With policy 'skip' and a `train_limit`, the images that take the place of unusable ones are looked at as well.

    Args:
        storage: the folder of all runs, where verdicts are kept.
        status: shared with the other steps of a start, so that each file is looked up once.
    """
    status = status or FileStatus()
    checked_train = _check(
        "training", train, lambda split: trainable_images(split, config).tolist(), config, storage, status
    )
    return checked_train, _check("validation", val, lambda split: range(len(split)), config, storage, status)


def check_validation(val: Dataset, config: DataConfig, storage: Path, status: FileStatus | None = None) -> CheckedSplit:
    """`check_splits` for the validation split alone."""
    return _check("validation", val, lambda split: range(len(split)), config, storage, status or FileStatus())


def require_usable(splits: Iterable[CheckedSplit], config: DataConfig) -> None:
    """DatasetError, with the first ten images and their number, where there are more than the policy lets pass."""
    refused = [split for split in splits if len(split.unusable) > _allowed(split.images, config)]
    if not refused:
        return
    counts = " and ".join(f"{len(split.unusable)} of {split.images} {split.what} images" for split in refused)
    named = first_ten(
        [image for split in refused for image in split.unusable], lambda image: f"{image.path}: {image.reason}"
    )
    policy = config.unusable_images
    over = f", more than data.max_skipped_fraction {config.max_skipped_fraction:g} lets pass"
    raise DatasetError(f"{counts} cannot be used{over if policy == 'skip' else ''}: {named}", remedy=_REMEDIES[policy])


def _check(
    what: str,
    split: Dataset,
    select: Callable[[Dataset], Iterable[int]],
    config: DataConfig,
    storage: Path,
    status: FileStatus,
) -> CheckedSplit:
    memory = memory_of(split, storage)
    verified, new = recall(memory), set[str]()
    images = list(select(split))
    wanted = len(images)
    looked_at: set[Path] = set()
    while images:
        looked_at |= {split.image_paths[image] for image in images}
        keys = image_keys(split, images, status)
        with ProgressBar(f"checking {what} images") as bar:
            unusable = find_unusable(
                split, [image for image in images if keys.get(image) not in verified], progress=bar
            )
        new |= {key for image, key in keys.items() if image not in unusable} - verified
        split = split.without(unusable) if unusable else split
        if not unusable or len(split.skipped) > _allowed(wanted, config):
            break
        images = [image for image in select(split) if split.image_paths[image] not in looked_at]
    if new:
        remember(memory, new)
    return CheckedSplit(what, split, wanted)


def _allowed(images: int, config: DataConfig) -> int:
    """Number of images that may be unusable."""
    return math.ceil(config.max_skipped_fraction * images) if config.unusable_images == "skip" else 0
