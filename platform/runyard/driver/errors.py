"""How a trial and a sweep can end besides well, and besides bad input."""

import traceback
from collections.abc import Mapping
from dataclasses import dataclass

from detector.errors import InputError
from runyard.failures import TrainingError


@dataclass(frozen=True)
class Failure:
    """Why a trial failed, in words that can be sent between processes."""

    error: str
    """One line: a user's mistake in its own words, other errors with their type."""
    details: str = ""
    """The first traceback; none for a user's mistake."""

    @classmethod
    def of(cls, error: BaseException) -> "Failure":
        """What a person should know of an exception."""
        text = " ".join(str(error).split())
        if isinstance(error, InputError):
            return cls(text)
        notes = getattr(error, "__notes__", ())  # a launcher puts the workers' first traceback there
        details = "\n".join(notes) if notes else "".join(traceback.format_exception(error))
        return cls(f"{type(error).__name__}: {text}", details)


class SweepError(TrainingError):
    """Some trials failed; the others are finished. Its notes are the first tracebacks."""

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
