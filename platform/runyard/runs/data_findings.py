"""Likely mistakes in a data set that would not stop a run, for `runyard doctor` and for the start of every run."""

import logging

from detector.data.copies import repeated_files, shared_images
from detector.data.images.files import FileStatus
from detector.data.invalid_entries import first_ten
from detector.data.samples import Dataset
from detector.errors import printable
from detector.evaluation.plausibility import ground_truth_findings

logger = logging.getLogger(__name__)


def find_mistakes(train: Dataset, val: Dataset, status: FileStatus | None = None) -> list[str]:
    """One sentence for each likely mistake; empty for none. Reads annotations, and a few bytes of a few images."""
    findings = []
    for split in (train, val):
        findings += [f"{split.name}: {finding}" for finding in ground_truth_findings(split)]
        repeated = repeated_files(split)
        if repeated:
            findings.append(
                f"{split.name}: {len(repeated)} image files are named by several entries, each of which counts as an "
                f"image: {first_ten(repeated, str)}"
            )
    shared = shared_images(train, val, status)
    if shared:
        named = first_ten(
            shared,
            lambda image: f"{image.validation} is {'' if image.same_file else 'a copy of '}{image.training}",
        )
        findings.append(
            f"{len(shared)} of {len(val)} validation images are training images too, so that AP is flattered: {named}"
        )
    return [printable(finding) for finding in findings]


def log_mistakes(train: Dataset, val: Dataset, status: FileStatus | None = None) -> None:
    """Warn of each likely mistake."""
    for finding in find_mistakes(train, val, status):
        logger.warning("%s", finding)
