"""The paced training loop as a Ray Train worker, launched as runyard launches its own."""

import os
from pathlib import Path
from typing import Any
from unittest import mock

import ray

from benchmarks.pacing import Pace, train_paced
from runyard.runs.folder import RunFolder
from runyard.spec import ExperimentSpec, from_dict
from runyard.training import ray_cluster, ray_train

_ROOT = Path(__file__).resolve().parents[1]
_PACE_VARIABLE = "RUNYARD_BENCHMARK_PACE"


def environment() -> dict[str, Any]:
    """Lets Ray's workers import what this process can."""
    paths = os.pathsep.join([str(_ROOT / "platform"), str(_ROOT)])
    return {"env_vars": {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}}


def launch_paced(spec: ExperimentSpec, folder: RunFolder, pace: Pace) -> None:
    """`ray_train.launch` on a cluster of its own, with the paced loop in the worker's place; returns when it ends."""
    runtime_env = environment()
    runtime_env["env_vars"][_PACE_VARIABLE] = f"{pace.steps} {pace.folder}"
    os.environ["RAY_ADDRESS"] = "local"
    ray_cluster.connect(runtime_env)
    try:
        with mock.patch.object(ray_train, "_train_worker", paced_worker):
            ray_train.launch(spec, folder)
    finally:
        ray.shutdown()


def paced_worker(config: dict[str, Any]) -> dict[str, Any]:
    """What Ray's worker runs."""
    steps, _, folder = os.environ[_PACE_VARIABLE].partition(" ")
    train_paced(
        from_dict(config["spec"]),
        RunFolder(Path(config["folder"])),
        ray_train.RayContext(),
        Pace(Path(folder), int(steps)),
    )
    return {}
