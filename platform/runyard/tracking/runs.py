"""A run as tracking knows it. Imports no mlflow."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class TrackedRun:
    """A run as tracking knows it, whichever store it is in."""

    identity: str
    """Unique in its experiment (the run's name, a trial's id): the run is found again by it."""
    name: str
    parent: str | None = None
    """Identity of the sweep's run."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """Set when the run is created; `source_tags` among them fill MLflow's own columns."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "TrackedRun":
        return cls(str(fields["identity"]), str(fields["name"]), fields.get("parent"), dict(fields.get("tags", {})))


def source_tags(*, user: str, command: str, git_commit: str | None) -> dict[str, str]:
    """The tags that MLflow's UI shows as a run's user, source and version; a client sets none of them by itself.

    Args:
        user: who started the run.
        command: script or command line, without secrets.
        git_commit: hash of the commit, None if unknown.
    """
    tags = {"mlflow.user": user, "mlflow.source.name": command, "mlflow.source.type": "LOCAL"}
    return tags if git_commit is None else tags | {"mlflow.source.git.commit": git_commit}
