"""Status of a run in its journal, from RUNNING to the way it ended. Imports no mlflow."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from runyard.spec import ExperimentSpec, to_dict
from runyard.tracking.journal import Journal, RunStatus

Artifact = tuple[Path, str]
"""A file worth keeping, and its folder among the run's artifacts."""


@contextmanager
def journaled(journal: Path, params: ExperimentSpec, inputs: Sequence[Path] = ()) -> Iterator[list[Artifact]]:
    """Write RUNNING on entry and how it ended on exit; files put into the list it gives become artifacts.

    The journal is closed in between: the process that does the work may write to it.
    """
    with Journal(journal) as writer:
        writer.append("status", {"status": "RUNNING", "message": ""})
        writer.append("params", to_dict(params))
        for path in inputs:
            writer.append("artifact", {"path": str(path), "artifact_path": ""})
    artifacts: list[Artifact] = []
    status: RunStatus = "FAILED"
    message = ""
    try:
        yield artifacts
        status = "FINISHED"
    except (KeyboardInterrupt, SystemExit) as error:
        status, message = "KILLED", type(error).__name__
        raise
    except Exception as error:
        message = f"{type(error).__name__}: {error}"
        raise
    finally:
        close_journal(journal, status, message, artifacts if status == "FINISHED" else ())


def close_journal(journal: Path, status: RunStatus, message: str = "", artifacts: Sequence[Artifact] = ()) -> None:
    """Write how a run has ended."""
    with Journal(journal) as writer:
        for path, artifact_path in artifacts:
            writer.append("artifact", {"path": str(path), "artifact_path": artifact_path})
        writer.append("status", {"status": status, "message": message})
