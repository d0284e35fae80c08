"""Report of `runyard doctor` on a data set: its content, likely mistakes, and images that cannot be used."""

from rich.console import Console

from detector.data.health import count_contents
from detector.data.samples import Dataset
from detector.errors import printable
from runyard.runs.data import open_unchecked
from runyard.runs.data_findings import find_mistakes
from runyard.runs.images.check import CheckedSplit, check_splits, require_usable
from runyard.runs.storage import check_format, storage_folder
from runyard.spec import ExperimentSpec

LISTED = 100


def check_data(spec: ExperimentSpec, console: Console | None = None) -> None:
    """Check both splits of the spec as a run does before it starts, and print what they are like.

    Raises InputError where a run would refuse to start. Verified images are noted in the storage folder.
    """
    console = console or Console()
    check_format(storage_folder(spec))
    train, val = open_unchecked(spec)
    splits = check_splits(train, val, spec.data, storage_folder(spec))
    for split, opened in zip(splits, (train, val), strict=True):
        for line in (*_contents(opened, split, spec.data.min_image_side_px), *_problems(split)):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    for finding in find_mistakes(train, val):
        console.print(f"warning: {finding}", markup=False, highlight=False, soft_wrap=True)
    require_usable(splits, spec.data)


def _contents(opened: Dataset, split: CheckedSplit, min_side_px: int) -> list[str]:
    contents = count_contents(opened, min_side_px)
    return [
        f"{printable(opened.name)} ({split.what}): {contents.images} images, {contents.boxes} boxes, "
        f"classes {', '.join(map(repr, opened.class_names))}",
        f"  crowds {contents.crowds}, difficult {contents.difficult}",
        f"  images without boxes {contents.images_without_boxes}, with a side below {min_side_px} px "
        f"{contents.tiny_images}",
        f"  boxes that training clips or drops: {contents.odd_boxes}; dropped {contents.dropped_boxes}",
        f"  {split.images} images that a run reads were decoded, {len(split.unusable)} cannot be used",
    ]


def _problems(split: CheckedSplit) -> list[str]:
    """File names may hold newlines, and bytes that are not text."""
    lines = [f"    {str(image.path)!r}: {image.reason}" for image in split.unusable[:LISTED]]
    left = len(split.unusable) - LISTED
    return [*lines, f"    and {left} more"] if left > 0 else lines
