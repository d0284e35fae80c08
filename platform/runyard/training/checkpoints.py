"""The checkpoints of one run: the newest good one, and those that are kept."""

import shutil
from collections.abc import Callable
from pathlib import Path

from detector.checkpoint import PARTIAL, read_metadata
from detector.errors import CheckpointError
from runyard.runs.folder import RunFolder

KEPT = 2
"""The newest one, and the one before it in case the newest is damaged."""


def newest_good_checkpoint(folder: RunFolder, warn: Callable[[str], None]) -> Path | None:
    """The newest checkpoint whose checksum holds; damaged ones are set aside under another name, and `warn` told.

    Removes what a killed process left half written. Raises CheckpointError where checkpoints exist and all of them are
    damaged: starting over would hide the loss.
    """
    for partial in folder.root.glob(f".checkpoint-*{PARTIAL}"):
        shutil.rmtree(partial, ignore_errors=True)
    checkpoints = folder.checkpoints()
    damaged: dict[Path, str] = {}
    for checkpoint in checkpoints:
        try:
            read_metadata(checkpoint)
        except CheckpointError as error:
            damaged[checkpoint] = str(error)
            continue
        # Left under their names, they would be counted among the newest ones, and good ones pruned instead.
        for path, problem in damaged.items():
            aside = path.with_name(f"damaged-{path.name}")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
            warn(f"{problem}. Training goes on from {checkpoint.name}, the one before; it was renamed to {aside.name}")
        return checkpoint
    if checkpoints:
        raise CheckpointError(
            f"all {len(checkpoints)} checkpoints are damaged; the newest: {damaged[checkpoints[0]]}",
            file=folder.root,
            remedy="Restore one from a backup, or remove the checkpoint-* folders to start over",
        )
    return None


def prune_checkpoints(folder: RunFolder) -> None:
    """Removes all but the newest ones."""
    for checkpoint in folder.checkpoints()[KEPT:]:
        shutil.rmtree(checkpoint)
