"""Start of a run's workers under either launcher: Ray Train's workers, or this process with plain torch."""

from collections.abc import Sequence
from typing import Any, Literal

from detector.models.detector import ScoringRow
from runyard.runs.folder import RunFolder
from runyard.spec import ExperimentSpec
from runyard.training.stopping import stops_on_signals, withdraw_stop

Launcher = Literal["ray", "local"]


def launch(
    spec: ExperimentSpec, folder: RunFolder, launcher: Launcher, rows: Sequence[ScoringRow] = ()
) -> dict[str, Any]:
    """Train and evaluate a prepared run; Ray must have been connected. Returns the final metrics.

    SIGTERM, SIGHUP and Ctrl-C, where this is the main thread, and `stopping.request_stop` end it in KeyboardInterrupt
    once the workers have written a checkpoint; so does a signal after the last step, once the metrics are written.

    Args:
        rows: scorings besides the spec's that the run's outputs are stored for.
    """
    with stops_on_signals(folder):
        if launcher == "local":
            from runyard.training import local

            metrics = local.launch(spec, folder, rows)
            assert metrics is not None, "the plain launcher was started as a rank other than 0"
            return metrics
        from runyard.training import ray_train

        return ray_train.launch(spec, folder, rows)


def check_launcher(spec: ExperimentSpec, launcher: Launcher) -> None:
    """ConfigError where this machine, or the connected Ray cluster, cannot hold the workers of a spec."""
    if launcher == "local":
        from runyard.training import local

        local.check_machine(spec)
        return
    from runyard.training import ray_train

    ray_train.check_resources(spec, ray_train.gpus_per_worker(spec))


def launch_inference(spec: ExperimentSpec, folder: RunFolder, launcher: Launcher, rows: Sequence[ScoringRow]) -> None:
    """Store a finished run's outputs on the spec's evaluated images, for `rows`.

    A request to stop an earlier training is withdrawn: with it, a failed worker would not be tried again.
    """
    withdraw_stop(folder)
    if launcher == "local":
        from runyard.training import local

        local.launch_inference(spec, folder, rows)
        return
    from runyard.training import ray_train

    ray_train.launch_inference(spec, folder, rows)
