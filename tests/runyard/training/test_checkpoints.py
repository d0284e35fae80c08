"""Choice of the checkpoint that a run goes on from, and of those that are kept."""

from pathlib import Path

import pytest
from torch import nn

from detector.checkpoint import read_metadata, save_checkpoint
from detector.errors import CheckpointError
from runyard.runs.folder import RunFolder
from runyard.training.checkpoints import KEPT, newest_good_checkpoint, prune_checkpoints


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path)


def save(folder: RunFolder, *steps: int) -> None:
    for step in steps:
        save_checkpoint(folder.checkpoint(step), nn.Linear(2, 2), None, {"step": step})


def damage(checkpoint: Path) -> None:
    with (checkpoint / "tensors.safetensors").open("r+b") as file:
        file.truncate(40)


def test_a_run_without_checkpoints_starts_from_nothing(folder: RunFolder) -> None:
    assert newest_good_checkpoint(folder, pytest.fail) is None


def test_the_newest_checkpoint_is_taken_in_silence(folder: RunFolder) -> None:
    save(folder, 9, 10, 100)
    assert newest_good_checkpoint(folder, pytest.fail) == folder.checkpoint(100)


def test_a_damaged_newest_one_is_set_aside_and_said(folder: RunFolder) -> None:
    save(folder, 1, 2, 3)
    damage(folder.checkpoint(3))
    (folder.checkpoint(2) / "metadata.json").unlink()
    told: list[str] = []
    assert newest_good_checkpoint(folder, told.append) == folder.checkpoint(1)
    assert len(told) == 2
    assert "checksum" in told[0]
    assert all("goes on from checkpoint-000000001" in text for text in told)
    # Good ones that are written from here on must not be pruned in favour of the damaged ones.
    save(folder, 2)
    prune_checkpoints(folder)
    assert folder.checkpoints() == [folder.checkpoint(2), folder.checkpoint(1)]
    assert (folder.root / "damaged-checkpoint-000000003").is_dir()


def test_where_all_are_damaged_nothing_is_started_over_and_nothing_renamed(folder: RunFolder) -> None:
    save(folder, 1, 2)
    for checkpoint in folder.checkpoints():
        damage(checkpoint)
    with pytest.raises(CheckpointError, match="all 2 checkpoints are damaged"):
        newest_good_checkpoint(folder, pytest.fail)
    assert len(folder.checkpoints()) == 2


def test_what_a_killed_process_left_half_written_is_removed(folder: RunFolder) -> None:
    save(folder, 1)
    partial = folder.root / ".checkpoint-000000002.4711.partial"
    partial.mkdir()
    (partial / "tensors.safetensors").write_bytes(b"half")
    assert newest_good_checkpoint(folder, pytest.fail) == folder.checkpoint(1)
    assert not partial.exists()


def test_pruning_keeps_the_newest_ones(folder: RunFolder) -> None:
    save(folder, 1, 2, 3, 4)
    prune_checkpoints(folder)
    assert [read_metadata(path)["step"] for path in folder.checkpoints()] == [4, 3][:KEPT]
