"""Errors with which trainings, trials and sweeps end, other than bad input."""

import traceback
from collections.abc import Mapping
from dataclasses import dataclass

from detector.errors import InputError


class NonFiniteLossError(RuntimeError):
    """Loss that became NaN or infinite; the weights are those before the step that is named."""


class TrainingStoppedError(RuntimeError):
    """End of a training that was asked to stop; its last checkpoint holds all that was done."""


class SilentWorkerError(RuntimeError):
    """Time-out of a worker in a collective operation that another one did not reach."""


class TrainingError(RuntimeError):
    """Failure of a training after all its attempts."""


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP, handled as Ctrl-C is."""


@dataclass(frozen=True)
class Failure:
    """Reason why a trial failed, in a form that can be sent between processes."""

    error: str
    """One line: the message of an input error, other errors with their type."""
    details: str = ""
    """First traceback; empty for an input error."""

    @classmethod
    def from_error(cls, error: BaseException) -> "Failure":
        """Message of an exception, with the traceback where it is not an input error."""
        text = " ".join(str(error).split())
        if isinstance(error, InputError):
            return cls(text)
        notes = getattr(error, "__notes__", ())  # a launcher puts the workers' first traceback there
        details = "\n".join(notes) if notes else "".join(traceback.format_exception(error))
        return cls(f"{type(error).__name__}: {text}", details)


class SweepError(TrainingError):
    """Failure of some trials; the others are finished. The notes are the first tracebacks."""

    def __init__(self, total: int, failures: Mapping[str, Failure]) -> None:
        """`failures`: each failed trial's label and what made it fail."""
        lines = [f"{len(failures)} of {total} trials failed; the same command tries them again"]
        lines += [f"  {label}: {failure.error}" for label, failure in failures.items()]
        super().__init__("\n".join(lines))
        self.failures = dict(failures)
        labels: dict[str, list[str]] = {}
        for label, failure in failures.items():
            labels.setdefault(failure.details, []).append(label)
        for details, failed in labels.items():
            if details:
                self.add_note(f"{', '.join(failed)}:\n{details}")
