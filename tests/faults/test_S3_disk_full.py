"""S3: no room for a checkpoint: the one before stays, nothing half written does, the message says what is missing.

A checkpoint that cannot be written ends the run: going on without one would put hours at stake in silence.
"""

import os
import re
import resource
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from torch import nn

from detector.checkpoint import read_metadata, save_checkpoint
from detector.errors import CheckpointError
from runyard.spec import ExperimentSpec


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 140 MB: one checkpoint of ResNet-18 fits, two do not."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=140m", "tmpfs", disk], capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"a tmpfs cannot be mounted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def test_S3_a_run_stops_with_its_last_checkpoint_and_goes_on_when_there_is_room(
    runs, last_step, small_disk: Path, tiny_spec: ExperimentSpec
) -> None:
    spec = replace(tiny_spec, runtime=replace(tiny_spec.runtime, storage=small_disk / "runs"))
    (small_disk / "runs").mkdir()
    process = runs.command(["-m", "runyard.training.local", runs.spec_file(spec)])
    output, _ = process.communicate()
    assert process.returncode == 2, output
    message = next(line for line in output.splitlines() if line.startswith("error: "))
    folder = runs.folder(spec)
    assert str(folder.checkpoint(6)) in message
    numbers = re.search(r"No space left on device\): it needs (\d+) bytes, (\d+) are free", message)
    assert numbers is not None, message
    assert int(numbers[1]) > int(numbers[2]) > 0
    assert [path.name for path in folder.checkpoints()] == ["checkpoint-000000003"]
    read_metadata(folder.checkpoints()[0])
    assert not list(folder.root.glob(".checkpoint*"))
    assert last_step(folder) == 6

    subprocess.run(["mount", "-o", "remount,size=400m", small_disk], check=True)
    room = replace(tiny_spec, runtime=replace(tiny_spec.runtime, name="room"))
    runs.finish(spec).assert_equal(runs.finish(room))


def test_S3_a_disk_that_becomes_read_only_says_so(small_disk: Path) -> None:
    save_checkpoint(small_disk / "checkpoint-1", nn.Linear(2, 2), None, {"step": 1})
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(CheckpointError, match="Read-only file system"):
        save_checkpoint(small_disk / "checkpoint-2", nn.Linear(2, 2), None, {"step": 2})
    assert read_metadata(small_disk / "checkpoint-1") == {"step": 1}


def test_S3_a_limit_on_the_size_of_files_is_told_as_such(tmp_path: Path) -> None:
    """A limit on file sizes looks like a quota to a process, and needs no mount."""
    save_checkpoint(tmp_path / "checkpoint-1", nn.Linear(2, 2), None, {"step": 1})
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            save_checkpoint(tmp_path / "checkpoint-2", nn.Linear(200, 200), None, {"step": 2})
        except CheckpointError as error:
            os._exit(0 if "File too large): it needs 1" in str(error) else 3)
        os._exit(4)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]
    assert read_metadata(tmp_path / "checkpoint-1") == {"step": 1}
