"""The checkpoints of one run folder: where they lie, which is the newest good one, which are kept."""

import logging
import shutil
from pathlib import Path

from detector.checkpoint import read_metadata
from detector.errors import CheckpointError

KEPT = 2
"""The newest one, and the one before it in case the newest is damaged."""

_log = logging.getLogger(__name__)


def checkpoint_folder(run_folder: Path, step: int) -> Path:
    """Where the checkpoint after `step` optimiser steps lies."""
    return run_folder / f"checkpoint-{step:09d}"


def list_checkpoints(run_folder: Path) -> list[Path]:
    """All complete checkpoint folders, newest first."""
    return sorted(run_folder.glob("checkpoint-*"), reverse=True)


def newest_good_checkpoint(run_folder: Path) -> Path | None:
    """The newest checkpoint whose checksum holds; damaged ones are named in the log and passed over.

    Raises CheckpointError where checkpoints exist and all of them are damaged: starting over would hide the loss.
    """
    folders = list_checkpoints(run_folder)
    for folder in folders:
        try:
            read_metadata(folder)
        except CheckpointError as error:
            _log.warning("%s: the checkpoint before it is used instead", error)
            continue
        return folder
    if folders:
        raise CheckpointError(
            f"all {len(folders)} checkpoints are damaged",
            file=run_folder,
            remedy="Restore one from a backup, or remove the checkpoint-* folders to start over",
        )
    return None


def prune_checkpoints(run_folder: Path) -> None:
    """Removes all but the newest ones."""
    for folder in list_checkpoints(run_folder)[KEPT:]:
        shutil.rmtree(folder)
