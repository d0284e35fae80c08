"""P12: waiting time for imports, for `--help`, and for the first training step of a smoke run.

Each is a process of its own. Ray's own start is not ours to shorten, so the smoke run with Ray is compared with an
empty TorchTrainer (`empty_trainer.py`): what counts is the difference, imports of ours and of what we use included.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.rows import Row
from benchmarks.settings import Settings
from benchmarks.timing import interleaved, repeated
from runyard.tracking.journal import read

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENT = ROOT / "experiments" / "coco_main.py"
_PATIENCE_S = 600.0

_IMPORT_PROGRAM = """
import torch, torchvision, time
started = time.perf_counter()
import importlib, pkgutil, detector
for module in pkgutil.walk_packages(detector.__path__, "detector."):
    importlib.import_module(module.name)
print(time.perf_counter() - started)
"""
_HELP_PROGRAM = """
import contextlib, io, runpy, sys
sys.path.insert(0, {folder!r})
sys.argv = [{script!r}, "--help"]
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    runpy.run_path({script!r}, run_name="__main__")
print(sorted({{"torch", "ray", "mlflow"}} & set(sys.modules)))
"""


def measure(settings: Settings) -> list[Row]:
    """P12."""
    checked = check_help()
    few, many = (1, 1) if settings.quick else (6, 12)
    imports = repeated(import_time, repeats=many)
    helps = repeated(lambda: run_time([sys.executable, str(EXPERIMENT), "--help"]), repeats=many)
    plain = repeated(lambda: time_to_first_step("local"), repeats=few, warm_up=0 if settings.quick else 1)
    rows = [
        _row(settings, "own import time of every module of detector", imports, 0.3, "at most 0.3 s"),
        _row(settings, "experiments/coco_main.py --help", helps, 1.0, "at most 1 s, no torch", checked),
        _row(settings, "smoke run until its first step is logged, plain launcher", plain, 15.0, "at most 15 s"),
    ]
    ours, other = interleaved(
        lambda: time_to_first_step("ray"),
        time_to_empty_trainer,
        repeats=many,  # it swings by a second from pair to pair
        warm_up=0 if settings.quick else 1,
    )
    rows.append(
        Row(
            key="P12",
            what="smoke run until its first step is logged, Ray",
            size=_PROCESS,
            kind="difference",
            unit="s",
            ours=ours,
            other=other,
            other_name="empty TorchTrainer",
            goal=settings.goal(3.0, at_least=False),
            goal_text="at most 3 s more",
        )
    )
    return rows


_PROCESS = "a new process each time, files in the system's cache"


def _row(
    settings: Settings, what: str, values: Sequence[float], bound: float, goal_text: str, checked: str = ""
) -> Row:
    return Row(
        key="P12",
        what=what,
        size=_PROCESS,
        kind="value",
        unit="s",
        ours=values,
        goal=settings.goal(bound, at_least=False),
        goal_text=goal_text,
        checked=checked,
    )


def check_help() -> str:
    """AssertionError where showing the help loads what is slow to load."""
    program = _HELP_PROGRAM.format(folder=str(EXPERIMENT.parent), script=str(EXPERIMENT))
    loaded = _output([sys.executable, "-c", program]).strip()
    if loaded != "[]":
        raise AssertionError(f"--help imports {loaded}")
    return "--help imports neither torch nor ray nor mlflow"


def import_time() -> float:
    """Import time of all modules of `detector` in seconds, once torch and torchvision are loaded."""
    return float(_output([sys.executable, "-c", _IMPORT_PROGRAM]))


def run_time(command: Sequence[str]) -> float:
    """From starting a command to its end, in seconds."""
    started = time.perf_counter()
    _output(command)
    return time.perf_counter() - started


def time_to_first_step(launcher: str) -> float:
    """From starting the process to the journal's line on the first step, in seconds; the run is then left to end."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.time()
        _output([sys.executable, str(EXPERIMENT), "--smoke", "--launcher", launcher, "--storage", folder])
        (journal,) = Path(folder).glob("*/journal.jsonl")
        for record in read(journal):
            if record.kind == "metrics" and "train/loss" in record.payload["values"]:
                return record.time_s - started
    raise AssertionError("the smoke run logged no step")


def time_to_empty_trainer() -> float:
    """From starting a process to the first line of an empty TorchTrainer's worker, in seconds."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "started"
        started = time.time()
        _output([sys.executable, "-m", "benchmarks.empty_trainer", str(file)])
        return float(file.read_text()) - started


def _output(command: Sequence[str]) -> str:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT / "platform"), str(ROOT)]),
        "RAY_ADDRESS": "local",
        "RAY_USAGE_STATS_ENABLED": "0",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    ran = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=_PATIENCE_S, check=False
    )
    if ran.returncode != 0:
        raise RuntimeError(f"{' '.join(command[1:3])} ended with {ran.returncode}: {ran.stderr[-2000:]}")
    return ran.stdout
