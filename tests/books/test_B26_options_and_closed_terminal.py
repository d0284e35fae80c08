"""B26: options that no run can have are one line at once; a closed terminal ends a training as SIGTERM does."""

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from runyard.runs.folder import RunFolder
from runyard.spec import ExperimentSpec, to_dict
from runyard.tracking.journal import last_status, read
from tests.books.commands import experiment, output_of, start

pytestmark = pytest.mark.processes

OPTIONS = {
    "a negative seed": (["--seed", "-1"], "seed: expected a number from 0 to "),
    "a seed of 2^70": (["--seed", str(2**70)], "seed: expected a number from 0 to "),
    "seeds as an axis": (["--vary", "seed=-1,2"], "seed: expected a number from 0 to "),
    "a negative number of GPUs": (["--gpus-per-worker", "-1"], "runtime.gpus_per_worker: expected at least 0"),
    "a GPU that this machine lacks": pytest.param(
        ["--gpus-per-worker", "1", "--launcher", "local"],
        "runtime.gpus_per_worker: this machine has no GPU that torch can use",
        marks=pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU"),
    ),
}


@pytest.mark.parametrize(("options", "named"), list(OPTIONS.values()), ids=list(OPTIONS))
def test_B26_an_option_that_no_run_can_have_is_one_line_before_anything_is_touched(
    tiny_data: Path, tmp_path: Path, options: list[str], named: str
) -> None:
    command = ["--row", "r50-iou", "--model.backbone.weights", "none", "--data", tiny_data]
    output = output_of(experiment("coco_main.py", *command, "--storage", tmp_path / "runs", *options), status=2)
    (line,) = output.splitlines()
    assert line.startswith(f"error: {named}")
    assert not (tmp_path / "runs").exists()


def wait_until(condition: Callable[[], bool], timeout_s: float = 120.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, f"nothing happened for {timeout_s} s"
        time.sleep(0.02)


def logged_steps(folder: Path) -> list[int]:
    """Steps whose loss the journals of a storage folder's runs tell."""
    records = (record for journal in folder.glob("*/journal.jsonl") for record in read(journal))
    return [r.payload["step"] for r in records if r.kind == "metrics" and "train/loss" in r.payload["values"]]


@pytest.mark.parametrize("program", ["experiment", "plain launcher"])
def test_B26_a_closed_terminal_ends_training_with_a_checkpoint(
    storage: Path, make_tiny_spec: Callable[[Path], ExperimentSpec], tmp_path: Path, program: str
) -> None:
    if program == "experiment":
        process = experiment(
            "coco_main.py", "--smoke", "--launcher", "local", "--storage", storage, "--optim.epochs", "40"
        )
    else:
        spec = to_dict(make_tiny_spec(storage))
        spec["optim"]["epochs"] = 200
        (tmp_path / "spec.json").write_text(json.dumps(spec))
        process = start("-m", "runyard.training.local", tmp_path / "spec.json")
    wait_until(lambda: len(logged_steps(storage)) >= 2 or process.poll() is not None)
    process.send_signal(signal.SIGHUP)
    output = output_of(process, status=143)
    assert "interrupted; the same command goes on where this one stopped" in output
    (run,) = (RunFolder(path.parent) for path in storage.glob("*/spec.json"))
    assert last_status(run.journal) == "KILLED"
    assert run.checkpoints()[0] == run.checkpoint(logged_steps(storage)[-1])


IGNORING = """
import os, signal, sys
from pathlib import Path
signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell does for a background job
from runyard.commandline.main import main
from runyard.runs.folder import RunFolder
from runyard.training.stopping import stops_on_signals

def run():
    os.kill(os.getpid(), signal.SIGHUP)
    folder = RunFolder(Path(sys.argv[1]))
    with stops_on_signals(folder):
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGINT)
        assert not folder.stop_request.exists()
    assert signal.getsignal(signal.SIGHUP) is signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    print("trained to the end")

sys.exit(main(run))
"""


def test_B26_signals_that_a_process_was_started_to_ignore_stay_ignored(tmp_path: Path) -> None:
    (tmp_path / "run.py").write_text(IGNORING)
    assert "trained to the end" in output_of(start(tmp_path / "run.py", tmp_path), status=0)
