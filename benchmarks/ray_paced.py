"""The paced training loop as a Ray Train worker, launched as runyard launches its own."""

import os
from pathlib import Path
from typing import Any

import ray

from benchmarks.pacing import Pace, train_paced
from runyard.runs.folder import RunFolder
from runyard.spec import ExperimentSpec, from_dict
from runyard.training import ray_cluster, ray_train

_ROOT = Path(__file__).resolve().parents[1]


def environment() -> dict[str, Any]:
    """Let Ray's workers import what this process can."""
    paths = os.pathsep.join([str(_ROOT / "platform"), str(_ROOT)])
    return {"env_vars": {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}}


def launch_paced(spec: ExperimentSpec, folder: RunFolder, pace: Pace) -> None:
    """`ray_train.launch` on a cluster of its own, with the paced loop as the workers' work; returns when it ends."""
    os.environ["RAY_ADDRESS"] = "local"
    ray_cluster.connect(environment())
    try:
        ray_train.run_on_workers(spec, folder, paced_worker, {"pace": (str(pace.folder), pace.steps)})
    finally:
        ray.shutdown()


def paced_worker(config: dict[str, Any]) -> None:
    """Work of a Ray Train worker."""
    pace_folder, steps = config["pace"]
    run_folder = RunFolder(Path(config["folder"]))
    train_paced(from_dict(config["spec"]), run_folder, ray_train.RayContext(), Pace(Path(pace_folder), steps))
