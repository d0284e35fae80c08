"""A sweep in MLflow: one run for the sweep, below it one for each trial, written by the driver's process alone.

A trial's run repeats a journal: its training's for the evaluation that ends a training, else the journal of its own
evaluation. It is found again by sweep and trial id, so that there is one run a trial however often a sweep goes on, and
on whatever machine.
"""

import functools
import getpass
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from detector.errors import InputError
from runyard.driver.plan import Plan, run_of
from runyard.grid import Trial
from runyard.reports.report import Report
from runyard.runs.attempts import describe_start
from runyard.runs.folder import RecordFolder, SweepFolder
from runyard.runs.prepare import skipped_text
from runyard.spec import to_dict
from runyard.tracking.journal import Journal, JournalError, RunStatus, last_status
from runyard.tracking.outcome import close_journal
from runyard.tracking.replay import JournalReplayer
from runyard.tracking.runs import TrackedRun, source_tags
from runyard.tracking.stores import TrackingUnavailableError, sqlite_file
from runyard.tracking.sync import remember_run, unsent_notice
from runyard.tracking.uploader import JournalUploader

if TYPE_CHECKING:
    from runyard.tracking.mlflow_tracker import MlflowTracker

_DESCRIPTION_TAG = "mlflow.note.content"
_MAX_DESCRIPTION_LENGTH = 4500
_NO_WORD = "its process ended without saying how"


class SweepTracking:
    """Follows the journals of a sweep's trials from its construction until `close`."""

    def __init__(
        self,
        folder: SweepFolder,
        plan: Plan,
        labels: Mapping[str, str],
        tracking_uri: str,
        *,
        answers: bool,
        writes: bool = True,
    ) -> None:
        """Raises TrackingError where the store refuses us.

        Args:
            labels: text of each trial by trial id.
            tracking_uri: resolved.
            answers: whether `check_store` found that the store answers.
            writes: False where nothing is to be done: the journals are only uploaded as far as they were not.
        """
        self._folder, self._plan, self._uri, self._writes = folder, plan, tracking_uri, writes
        runtime = plan.trials[0].spec.runtime
        self._given_uri = runtime.tracking_uri
        name = folder.root.name
        tracker = functools.cache(functools.partial(open_tracker, tracking_uri, runtime.experiment))
        self._tracker = tracker
        source = _source_tags()
        parent = TrackedRun(name, name, tags={"sweep": name, "kind": "sweep"} | source)
        children = [(trial, _child(name, trial, labels[trial.id], source)) for trial in plan.trials]
        if writes:
            with Journal(folder.journal) as journal:
                journal.append("status", {"status": "RUNNING", "message": ""})
                journal.append("params", {"sweep": name, "dataset": plan.trials[0].spec.source.data})
                journal.append("artifact", {"path": str(folder.trials), "artifact_path": ""})
            journals = [(plan.journal_of(trial), run) for trial, run in children]
            remember_run(folder, runtime.experiment, parent, journals)
        # A SQLite file that does not exist yet takes MLflow seconds to make: that is left to the replayer.
        if answers and ((database := sqlite_file(tracking_uri)) is None or database.exists()):
            self._begin(tracker(), parent)
        self._replayer = JournalReplayer(tracker)
        self._replayer.follow(folder.journal, parent)
        for trial, run in children:
            record = self._record_of(trial)
            if not record.tracking.exists():
                remember_run(record, runtime.experiment, run)
            self._replayer.follow(record.journal, run)

    def close(
        self,
        status: RunStatus,
        message: str,
        found: Report,
        errors: Mapping[str, str],
        say: Callable[[str], None],
    ) -> str | None:
        """Record the end of the sweep and its trials, and upload the rest; `say` gets a notice of what is left.

        Returns the experiment's id in the store, None where records are left: the store may be away.

        Args:
            found: its tables become the description of the sweep's run, its APs the metrics.
            errors: of failed trials, by trial id.
        """
        if self._writes:
            for trial in self._plan.trials:
                self._correct_status(trial, "KILLED" if status == "KILLED" else "FAILED", errors.get(trial.id))
            if found.summary:
                with Journal(self._folder.journal) as journal:
                    journal.append("tag", {"key": _DESCRIPTION_TAG, "value": _cut(found.summary)})
                    # By the number of results: a point once uploaded stays, and the means of a grown sweep are others.
                    journal.append("metrics", {"step": found.results, "values": found.metrics})
            close_journal(self._folder.journal, status, message, found.artifacts)
        left = self._replayer.close(say=lambda text: say(f"  {text}"))
        if notice := unsent_notice(left, self._folder.root, self._uri, self._given_uri):
            say(notice)
        # Without a record left the replayer has opened the tracker, which remembers the id: nothing is contacted.
        return None if left else self._tracker().known_experiment_id

    def _begin(self, tracker: "MlflowTracker", parent: TrackedRun) -> None:
        """Refused credentials end the sweep before it starts. A store that is away does not: it is tried again."""
        try:
            with suppress(TrackingUnavailableError):
                tracker.experiment_id()
                JournalUploader(self._folder.journal, tracker, parent).upload()
        except InputError as error:
            if self._writes:
                close_journal(self._folder.journal, "FAILED", str(error))
            raise

    def _record_of(self, trial: Trial) -> RecordFolder:
        return RecordFolder(self._plan.journal_of(trial).parent)

    def _correct_status(self, trial: Trial, ended: RunStatus, error: str | None) -> None:
        """Correct a journal whose writer died without a word, or that was never begun because of an earlier failure."""
        journal = self._plan.journal_of(trial)
        said = last_status(journal)
        try:
            if said == "RUNNING":
                finished = _is_finished(trial)
                close_journal(journal, "FINISHED" if finished else ended, "" if finished else error or _NO_WORD)
            elif said is None and error is not None:
                with Journal(journal) as writer:
                    writer.append("params", to_dict(trial.spec))
                close_journal(journal, "FAILED", error)
        except JournalError:
            return  # it is being written: something runs after all


def open_tracker(uri: str, experiment: str) -> "MlflowTracker":
    """The tracker of an experiment; importing MLflow takes a second."""
    from runyard.tracking.mlflow_tracker import MlflowTracker

    return MlflowTracker(uri, experiment)


def run_tags(trial: Trial) -> dict[str, str]:
    """Tags by which a trial's tracked run can be searched besides its parameters."""
    spec, folder = trial.spec, run_of(trial)
    source = json.loads(folder.manifest.read_text())["source"]
    tags = {
        "recipe": spec.recipe,
        "paper_table": spec.paper.table,
        "paper_row": spec.paper.row,
        "paper_changed": ", ".join(spec.paper.changed),
        "dataset": str(spec.source.data or spec.source.train_annotations),
        "training_hash": spec.training_hash,
        "scoring_hash": spec.scoring_hash,
        "git_sha": source["git_sha"] or "unknown",
        "source_sha256": source["files_sha256"],
        "run_folder": str(folder.root),
        "skipped_images": skipped_text(folder, spec),
    }
    return {name: value for name, value in tags.items() if value}


def _is_finished(trial: Trial) -> bool:
    return run_of(trial).evaluation(trial.spec.scoring_hash).metrics.exists()


def _child(sweep: str, trial: Trial, label: str, source: Mapping[str, str]) -> TrackedRun:
    tags = {"sweep": sweep, "kind": "trial", "trial": trial.id, "row": trial.row, "seed": str(trial.spec.seed)}
    return TrackedRun(f"{sweep}/{trial.id}", label, parent=sweep, tags=tags | run_tags(trial) | dict(source))


def _source_tags() -> dict[str, str]:
    start = describe_start()
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a numeric user without a name, as in containers
        user = "unknown"
    return source_tags(user=user, command=start["command"], git_commit=start["source"]["git_sha"])


def _cut(text: str) -> str:
    """Whole lines of a text that is too long for a tag."""
    if len(text) <= _MAX_DESCRIPTION_LENGTH:
        return text
    return text[:_MAX_DESCRIPTION_LENGTH].rpartition("\n")[0] + "\n\nThe rest is in results/report.md."
