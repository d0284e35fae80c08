"""How a sweep can end besides well, and besides bad input."""

from collections.abc import Mapping


class SweepError(RuntimeError):
    """Some trials failed; the others are finished. `failures` is each failed trial's label and its first error."""

    def __init__(self, total: int, failures: Mapping[str, str]) -> None:
        lines = [f"{len(failures)} of {total} trials failed; the same command tries them again"]
        lines += [f"  {label}: {error}" for label, error in failures.items()]
        super().__init__("\n".join(lines))
        self.total = total
        self.failures = dict(failures)

    def __reduce__(self) -> tuple[object, ...]:
        return SweepError, (self.total, self.failures)
