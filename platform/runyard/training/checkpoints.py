"""The checkpoints of one run: which is the newest good one, which are kept."""

import logging
import shutil
from pathlib import Path

from detector.checkpoint import read_metadata
from detector.errors import CheckpointError
from runyard.layout import RunFolder

KEPT = 2
"""The newest one, and the one before it in case the newest is damaged."""

_log = logging.getLogger(__name__)


def newest_good_checkpoint(folder: RunFolder) -> Path | None:
    """The newest checkpoint whose checksum holds; damaged ones are named in the log and passed over.

    Raises CheckpointError where checkpoints exist and all of them are damaged: starting over would hide the loss.
    """
    checkpoints = folder.checkpoints()
    for checkpoint in checkpoints:
        try:
            read_metadata(checkpoint)
        except CheckpointError as error:
            _log.warning("%s: the checkpoint before it is used instead", error)
            continue
        return checkpoint
    if checkpoints:
        raise CheckpointError(
            f"all {len(checkpoints)} checkpoints are damaged",
            file=folder.root,
            remedy="Restore one from a backup, or remove the checkpoint-* folders to start over",
        )
    return None


def prune_checkpoints(folder: RunFolder) -> None:
    """Removes all but the newest ones."""
    for checkpoint in folder.checkpoints()[KEPT:]:
        shutil.rmtree(checkpoint)
