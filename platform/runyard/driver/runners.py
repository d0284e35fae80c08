"""Runners of jobs: one after the other in this process, or side by side on a Ray cluster (`ray_tune`)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from runyard.driver.jobs import Job, perform
from runyard.failures import Failure
from runyard.training.launch import Launcher

OnState = Callable[[Job, str, str], None]
"""Called with a job, its state ('running', 'finished', 'failed') and, for a failed one, its error."""

Perform = Callable[[Job, Launcher], None]
"""Does a job, or sees that it is done; raises the error that made it fail."""


class Runner(Protocol):
    """Does jobs of one stage; returns what made some fail, by the jobs' ids."""

    def run(self, jobs: Sequence[Job], on_state: OnState) -> Mapping[str, Failure]: ...

    def stop(self) -> None:
        """After an interruption: end what is running, with a checkpoint where there is time for one."""


class InThisProcess:
    """One job after the other; a training's workers are started by the launcher."""

    def __init__(self, launcher: Launcher, do: Perform = perform) -> None:
        self._launcher = launcher
        self._do = do

    def run(self, jobs: Sequence[Job], on_state: OnState) -> dict[str, Failure]:
        """Do all jobs; one failure stops no other."""
        failures = {}
        for job in jobs:
            on_state(job, "running", "")
            try:
                self._do(job, self._launcher)
                on_state(job, "finished", "")
            except Exception as error:
                failures[job.id] = Failure.from_error(error)
                on_state(job, "failed", failures[job.id].error)
        return failures

    def stop(self) -> None:
        """Nothing: what ran has ended with the interruption."""
