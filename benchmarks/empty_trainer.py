"""An empty TorchTrainer as a Ray user would write it, on a cluster like ours: its worker notes the time, no more.

It imports nothing of ours, so that whatever ours needs beyond Ray and torch counts as ours.
"""

import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

import ray
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

HEALTH_CHECK_VARIABLES = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2"}
"""As ours."""


def note_the_time(config: dict[str, Any]) -> None:
    """Work of the worker: write the time."""
    Path(config["file"]).write_text(repr(time.time()))


def main(started_file: Path) -> None:
    """Run until the worker has written `started_file`, and to the end."""
    os.environ.update(HEALTH_CHECK_VARIABLES)
    ray.init(
        address="local",
        num_cpus=max(os.cpu_count() or 1, 2),
        include_dashboard=False,
        object_store_memory=200_000_000,
        logging_level=logging.ERROR,
        log_to_driver=False,
        runtime_env={"env_vars": {**HEALTH_CHECK_VARIABLES, "RAY_USAGE_STATS_ENABLED": "0"}},
    )
    try:
        TorchTrainer(
            note_the_time,
            train_loop_config={"file": str(started_file)},
            scaling_config=ScalingConfig(num_workers=1, use_gpu=False),
            run_config=RunConfig(name="empty", storage_path=str(started_file.parent)),
        ).fit()
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
