"""A sweep in MLflow: one run for the sweep, below it one for each trial, written by the driver's process alone.

A trial's run repeats a journal (its training's, or that of its own scoring) and is found again by sweep and trial id:
however often a sweep goes on, and on whatever machine, there is one run a trial.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress

from runyard.driver.experiment import run_tags
from runyard.driver.plan import Cell
from runyard.reports.report import Report
from runyard.runs.attempt import close_journal
from runyard.runs.folder import RunFolder, SweepFolder
from runyard.spec import to_dict
from runyard.tracking.journal import Journal, JournalError, RunStatus, last_status
from runyard.tracking.mlflow_tracker import MlflowTracker
from runyard.tracking.replay import CLOSE_S, JournalReplayer
from runyard.tracking.runs import TrackedRun
from runyard.tracking.stores import TrackingUnavailableError
from runyard.tracking.sync import remember_run
from runyard.tracking.uploader import JournalUploader

REPLAY_TIMEOUT_S = CLOSE_S
_DESCRIPTION_TAG = "mlflow.note.content"
_MAX_DESCRIPTION_LENGTH = 4500
_NO_WORD = "its process ended without saying how"


class SweepTracking:
    """Follows the journals of a sweep's trials from its construction until `close`."""

    def __init__(self, folder: SweepFolder, cells: Sequence[Cell], experiment: str, tracking_uri: str) -> None:
        """Raises TrackingError where the store refuses us."""
        self._cells = cells
        self._journal = folder.as_run.journal
        name = folder.root.name
        tracker = MlflowTracker(tracking_uri, experiment)
        with Journal(self._journal) as journal:
            journal.append("status", {"status": "RUNNING", "message": ""})
            journal.append("params", {"sweep": name, "dataset": cells[0].run.spec.source.data})
            journal.append("artifact", {"path": str(folder.trials), "artifact_path": ""})
        parent = TrackedRun(name, name, tags={"sweep": name, "kind": "sweep"})
        children = [(cell.journal, _child(name, cell)) for cell in cells]
        remember_run(folder.as_run, experiment, parent, children)
        # Credentials that are refused end the sweep here. A store that is away does not: it is tried again and again.
        with suppress(TrackingUnavailableError):
            JournalUploader(self._journal, tracker, parent).upload()
        self._replayer = JournalReplayer(lambda: tracker)
        self._replayer.follow(self._journal, parent)
        for cell, (_, run) in zip(cells, children, strict=True):
            if cell.evaluation.metrics.exists() and last_status(cell.journal) != "FINISHED":
                close_journal(cell.journal, "FINISHED")  # its process died, or failed, after all that counts was done
            remember_run(RunFolder(cell.journal.parent), experiment, run)
            self._replayer.follow(cell.journal, run)

    def close(self, status: RunStatus, message: str, found: Report, errors: Mapping[str, str]) -> int:
        """Says how the sweep and its trials ended, and uploads the rest; the number of records that did not get there.

        Args:
            found: its tables become the description of the sweep's run.
            errors: of failed trials, by trial id.
        """
        for cell in self._cells:
            _mend_status(cell, "KILLED" if status == "KILLED" else "FAILED", errors.get(cell.trial.id))
        if found.summary:
            with Journal(self._journal) as journal:
                journal.append("tag", {"key": _DESCRIPTION_TAG, "value": _cut(found.summary)})
        close_journal(self._journal, status, message, found.artifacts)
        return self._replayer.close(REPLAY_TIMEOUT_S)


def _cut(text: str) -> str:
    """Whole lines of a text that is too long for a tag."""
    if len(text) <= _MAX_DESCRIPTION_LENGTH:
        return text
    return text[:_MAX_DESCRIPTION_LENGTH].rpartition("\n")[0] + "\n\nThe rest is in results/report.md."


def _child(sweep: str, cell: Cell) -> TrackedRun:
    trial = cell.trial
    tags = {"sweep": sweep, "kind": "trial", "trial": trial.id, "row": trial.row, "seed": str(trial.spec.seed)}
    return TrackedRun(f"{sweep}/{trial.id}", trial.label, parent=sweep, tags=tags | run_tags(trial.spec, cell.run))


def _mend_status(cell: Cell, ended: RunStatus, error: str | None) -> None:
    """Corrects a journal whose writer died without a word, or that was never begun because of an earlier failure."""
    said = last_status(cell.journal)
    try:
        if said == "RUNNING":
            finished = cell.evaluation.metrics.exists()
            close_journal(cell.journal, "FINISHED" if finished else ended, "" if finished else error or _NO_WORD)
        elif said is None and error is not None:
            with Journal(cell.journal) as journal:
                journal.append("params", to_dict(cell.trial.spec))
            close_journal(cell.journal, "FAILED", error)
    except JournalError:
        return  # it is being written: something runs after all
