"""F9: a second driver of the same run or sweep is refused, and neither gets in the other's way."""

import re
from pathlib import Path

import pytest

from runyard.runs.folder import RunFolder
from runyard.tracking.journal import effective_metrics, last_status, read

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
ONE_RUN = ("coco_main.py", "--name", "run", "--optim.epochs", "6")
SWEEP = ("ablate_iou_loss.py", "--rows", "baseline", "bce", "--optim.epochs", "6")


@pytest.mark.parametrize(
    "command",
    [ONE_RUN, pytest.param(SWEEP, marks=pytest.mark.slow)],
    ids=["run", "sweep"],
)
def test_F9_the_second_of_two_drivers_is_refused_and_the_first_one_finishes(
    runs, wait_until, storage: Path, command: tuple[str, ...]
) -> None:
    script, *options = command
    whole = [EXPERIMENTS / script, "--smoke", "--launcher", "local", "--storage", storage, *options]

    def folders() -> list[RunFolder]:
        return [RunFolder(path.parent) for path in storage.glob("*/journal.jsonl")]

    first = runs.command(whole)
    wait_until(lambda: any(starts(folder) for folder in folders()) or first.poll() is not None, timeout_s=200)
    second = runs.command(whole)
    output, _ = second.communicate(timeout=200)
    assert second.returncode == 2, output
    refusal = rf"another process is running this sweep \(process {first.pid} on \S+\)\. Wait for it, or stop it"
    assert re.search(refusal, output), output
    assert first.poll() is None, "it ended before the second driver could be refused"
    output, _ = first.communicate(timeout=280)
    assert first.returncode == 0, output
    for folder in folders():
        assert last_status(folder.journal) == "FINISHED"
        assert starts(folder) == [0]
        assert len({record.seq for record in read(folder.journal)}) == len(list(read(folder.journal)))
        steps = [step for step, _ in effective_metrics(folder.journal)["train/loss"]]
        assert steps == list(range(1, len(steps) + 1))


def starts(folder: RunFolder) -> list[int]:
    """At which steps attempts have begun."""
    return [record.payload["start_step"] for record in read(folder.journal) if record.payload.get("event") == "start"]
