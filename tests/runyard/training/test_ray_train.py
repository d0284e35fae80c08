"""Reports of failed attempts on Ray. Starts no cluster; tests/faults injects the failures themselves."""

import pytest
from ray.exceptions import RayActorError
from ray.train import WorkerGroupError

from detector.errors import DatasetError
from runyard.failures import NonFiniteLossError, SilentWorkerError, TrainingStoppedError
from runyard.training.ray_train import _description, _first_cause


class HealthCheckError(Exception):
    """As Ray wraps what it found out about a dead worker."""

    def __init__(self, failure: Exception) -> None:
        super().__init__(f"A worker health check failed.\n{failure}")
        self.health_check_failure = failure


DEAD = HealthCheckError(
    RayActorError(
        error_msg="The actor died unexpectedly before finishing this task.\n\tpid: 4711\n"
        "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR "
        "Worker exit detail: End of file. Some common causes include: (1) the process was killed by the OOM killer"
    )
)
SILENT = SilentWorkerError("another worker did not answer for 20 s (runtime.collective_timeout_s)")
BUG = ZeroDivisionError("division\nby zero")


@pytest.mark.parametrize(
    ("failures", "description"),
    [
        ({0: BUG}, "worker 0: ZeroDivisionError: division by zero"),
        ({0: SILENT, 1: BUG}, "worker 1: ZeroDivisionError: division by zero"),
        ({0: DEAD, 1: BUG}, "worker 1: ZeroDivisionError: division by zero"),
        (
            {0: SILENT, 1: DEAD},
            "worker 1 died: its worker process has died. Worker exit type: SYSTEM_ERROR "
            "Worker exit detail: End of file.",
        ),
        ({0: SILENT, 1: SILENT}, f"worker 0: SilentWorkerError: {SILENT}"),
        ({0: BUG, 3: DatasetError("is damaged", file="a.jpg")}, "worker 3: DatasetError: a.jpg: is damaged"),
        ({0: SILENT, 1: NonFiniteLossError("step 3")}, "worker 1: NonFiniteLossError: step 3"),
        ({0: SILENT, 1: TrainingStoppedError("step 3")}, "worker 1: TrainingStoppedError: step 3"),
    ],
)
def test_the_failure_that_the_others_followed_from_is_told(failures: dict[int, Exception], description: str) -> None:
    assert _description(*_first_cause(WorkerGroupError("", failures))) == description


def test_a_dead_controller_is_told_in_one_line() -> None:
    text = _description(*_first_cause(RayActorError(error_msg="The actor died\nunexpectedly")))
    assert text.startswith("Ray's controller died: ")
    assert "\n" not in text


def test_a_worker_that_dies_between_others_on_gpus_may_have_waited_for_them() -> None:
    first = _first_cause(WorkerGroupError("", {0: SILENT, 1: DEAD}))
    text = _description(*first, several_gpus=True)
    assert text.startswith(f"{_description(*first)} (Perhaps another worker did not answer")
    assert "Watchdog caught collective operation timeout" in text
    alone = _first_cause(WorkerGroupError("", {0: BUG}))
    assert _description(*alone, several_gpus=True) == _description(*alone)
