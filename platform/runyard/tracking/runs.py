"""What tracking knows of a run. Imports no mlflow."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class TrackedRun:
    """A run as tracking knows it, whichever store it is in."""

    identity: str
    """What makes it this run and no other (the run's name, a trial's id): it is found again by this."""
    name: str
    parent: str | None = None
    """Identity of the sweep's run."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """Set when the run is created."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "TrackedRun":
        return cls(str(fields["identity"]), str(fields["name"]), fields.get("parent"), dict(fields.get("tags", {})))
