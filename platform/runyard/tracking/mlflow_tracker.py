"""Runs in an MLflow store, found again by our own identity. Used by the driver; the one module that imports mlflow.

Every call goes through the client with an explicit run id: no active run, no autologging. MLflow's errors become a
TrackingError without credentials in its text: unavailable (worth another try), refused, one run or one record refused.
"""

import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

import requests
from mlflow.entities import Metric, Param, Run, RunTag, ViewType
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from sqlalchemy.exc import SQLAlchemyError

from runyard.runs.manifest import without_secrets
from runyard.runs.names import safe_name
from runyard.tracking.journal import RunStatus
from runyard.tracking.mlflow_errors import translated_error
from runyard.tracking.names import (
    MAX_PARAMETER_LENGTH,
    POSITION_TAG,
    artifact_folder,
    flat_parameters,
    tracked_name,
)
from runyard.tracking.runs import TrackedRun
from runyard.tracking.stores import (
    RunRefusedError,
    TrackingError,
    TrackingRefusedError,
    TrackingUnavailableError,
    artifact_location,
    check_database_file,
    missing_driver,
    sqlite_file,
    sqlite_lock,
)

IDENTITY_TAG = "runyard.run_id"
_JOURNAL_TAG = "runyard.journal"
_NO_JOURNAL_YET = "none"
_PARENT_TAG = "mlflow.parentRunId"
_MESSAGE_TAG = "status_message"
_METRICS_A_BATCH = 800
_PARAMS_OR_TAGS_A_BATCH = 100
_MAX_TAG_LENGTH = 5000
_ARTIFACT_TIMEOUT_S = 120
# MLflow 3.17's UI opens on model training where the URL says workflowType=machine_learning; other versions read this.
_EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
_DEFAULT_EXPERIMENT_ID = "0"
_log = logging.getLogger(__name__)
# "Creating initial MLflow database tables..." would break a progress bar.
logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)


@dataclass(frozen=True)
class MetricValue:
    """One point of a metric's curve."""

    name: str
    value: float
    step: int
    time_s: float


class MlflowTracker:
    """One experiment in one store. The constructor contacts nothing; every method may raise TrackingError."""

    def __init__(self, tracking_uri: str, experiment: str) -> None:
        """`tracking_uri` as `stores.resolve_tracking_uri` gives it."""
        self.tracking_uri = tracking_uri
        self.experiment = experiment
        self._client: MlflowClient | None = None
        self._experiment_id: str | None = None
        self._opening = threading.Lock()

    def experiment_id(self) -> str:
        """The experiment's id; it is created if it does not exist. The first call checks that the store can be used.

        Returns or raises within about 10 seconds, also if a server accepts and never answers.
        """
        with self._opening, self._translated(), sqlite_lock(self.tracking_uri):
            if self._experiment_id is None:
                database = sqlite_file(self.tracking_uri)
                is_new = database is not None and not check_database_file(database)
                client = MlflowClient(self.tracking_uri)
                if is_new:
                    # MLflow puts an experiment "Default" into every store, with artifacts in the working directory.
                    client.delete_experiment(_DEFAULT_EXPERIMENT_ID)
                self._experiment_id = self._find_or_create_experiment(client)
                self._client = client
            return self._experiment_id

    @property
    def known_experiment_id(self) -> str | None:
        """The experiment's id where the store has told it; contacts nothing."""
        return self._experiment_id

    def open_run(self, run: TrackedRun, *, journal: str | None = None, start_time_s: float | None = None) -> str:
        """MLflow's id of a run; it is created if the experiment has none of this identity (and this journal).

        A server may carry out a request long after it was given up, and another process may create the run at the same
        time. Of several runs with one journal the one with uploads is kept; those without are deleted, the late ones
        when the run is opened again.
        """
        experiment_id = self.experiment_id()
        # Without the lock each trial of a sweep would create a run for their common parent.
        with self._opening, self._translated(), sqlite_lock(self.tracking_uri):
            known = self._runs(experiment_id, run.identity, journal)
            if known and (journal is None or _journal_of(known[0]) == journal):
                return str(known[0].info.run_id) if journal is None else self._only_first(experiment_id, known)
            tags = {tracked_name(key): str(value)[:_MAX_TAG_LENGTH] for key, value in run.tags.items()}
            tags[IDENTITY_TAG] = safe_name(run.identity)
            start_ms = _milliseconds(start_time_s or time.time())
            if run.parent is not None:
                tags[_PARENT_TAG] = self._parent(experiment_id, run.parent, start_ms)
            if journal is None:
                return self._create(experiment_id, run.name, tags, start_ms)
            tags[_JOURNAL_TAG] = journal
            if known:  # created by a child
                self.set_tags(known[0].info.run_id, tags)
            else:
                self._create(experiment_id, run.name, tags, start_ms)
            return self._only_first(experiment_id, self._runs(experiment_id, run.identity, journal))

    def log_metrics(
        self, run_id: str, metrics: Sequence[MetricValue], tags: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        """Add points to curves and set tags, in one request unless there are more than 800 points or 100 tags.

        The given tags are set with the last points, never before them. The same point sent twice is kept once. A
        non-finite value becomes a tag, and so does the original of a name that MLflow refuses.
        """
        finite = []
        found: dict[str, str] = {}
        for metric in metrics:
            name = tracked_name(metric.name)
            if name != metric.name:
                found[f"original_name/{name}"] = metric.name
            if abs(metric.value) <= 1.7e308:
                finite.append(Metric(name, metric.value, _milliseconds(metric.time_s), metric.step))
            else:
                found[f"non_finite/{name}"] = f"{metric.value} at step {metric.step}"
        points = list(_batches(finite, _METRICS_A_BATCH))
        items = list(_batches(_run_tags(found | dict(tags)), _PARAMS_OR_TAGS_A_BATCH))
        with self._translated():
            client = self._open_client()
            for batch in points[:-1]:
                client.log_batch(run_id, metrics=batch)
            last = points[-1] if points else []
            for number, batch in enumerate(items or [[]]):
                if last or batch:
                    client.log_batch(run_id, metrics=last if number == 0 else [], tags=batch)

    def log_params(self, run_id: str, params: Mapping[str, Any]) -> None:
        """Add a nested mapping as flat parameters; long values go to the artifact params/long_values.json.

        MLflow's parameters cannot be changed: if a resumed run has another value (its number of workers), the first
        stays and the new one becomes a tag.
        """
        flat = {tracked_name(name): value for name, value in flat_parameters(params).items()}
        long_values = {name: value for name, value in flat.items() if len(value) > MAX_PARAMETER_LENGTH}
        with self._translated():
            client = self._open_client()
            known = client.get_run(run_id).data.params
            new = [Param(name, value) for name, value in flat.items() if name not in known and name not in long_values]
            for batch in _batches(new, _PARAMS_OR_TAGS_A_BATCH):
                client.log_batch(run_id, params=batch)
        changed = {name for name, value in known.items() if flat.get(name, value) != value}
        self.set_tags(run_id, {f"changed/{name}": flat[name] for name in changed})
        if long_values:
            try:
                with self._translated():
                    client.log_dict(run_id, long_values, "params/long_values.json")
            except TrackingUnavailableError as error:
                # The artifact store may be broken alone; the spec among the artifacts holds these values too.
                _log.warning("long parameter values were not uploaded: %s", error)

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Set tags, replacing their former values; very long values are cut."""
        with self._translated():
            for batch in _batches(_run_tags(tags), _PARAMS_OR_TAGS_A_BATCH):
                self._open_client().log_batch(run_id, tags=batch)

    def get_tags(self, run_id: str) -> dict[str, str]:
        """All tags of a run."""
        with self._translated():
            return dict(self._open_client().get_run(run_id).data.tags)

    def log_artifact(self, run_id: str, path: Path, folder: str = "") -> None:
        """Upload a file, or a folder's content, under a folder of the run's artifacts; a former upload is replaced."""
        client = self._open_client()
        with self._translated(), _patient_requests():
            try:
                upload = client.log_artifacts if path.is_dir() else client.log_artifact
                upload(run_id, str(path), artifact_folder(folder) or None)
            except (MlflowException, requests.RequestException, OSError):
                raise
            except Exception as error:
                # Buckets are reached through their vendors' libraries, whose errors have no common base.
                raise OSError(f"the artifact store failed with {type(error).__name__}: {error}") from error

    def set_status(self, run_id: str, status: RunStatus, message: str = "", time_s: float | None = None) -> None:
        """Set RUNNING, or how the run has ended, with a message as a tag; an earlier message is removed."""
        with self._translated():
            if status == "RUNNING":
                self._open_client().update_run(run_id, status=status)
            else:
                self._open_client().set_terminated(run_id, status, _milliseconds(time_s or time.time()))
        if message:
            self.set_tags(run_id, {_MESSAGE_TAG: without_secrets(message)})
        elif _MESSAGE_TAG in self.get_tags(run_id):
            with self._translated():
                self._open_client().delete_tag(run_id, _MESSAGE_TAG)

    def require_active(self, run_id: str) -> None:
        """Raise RunRefusedError if the run was deleted."""
        with self._translated():
            stage = self._open_client().get_run(run_id).info.lifecycle_stage
        if stage != "active":
            raise RunRefusedError(
                f"run {run_id} was deleted", file=self._shown_uri, remedy="Restore it in the MLflow UI"
            )

    @property
    def _shown_uri(self) -> str:
        return without_secrets(self.tracking_uri)

    def _open_client(self) -> MlflowClient:
        if self._client is None:
            self.experiment_id()
        assert self._client is not None
        return self._client

    def _find_or_create_experiment(self, client: MlflowClient) -> str:
        existing = client.get_experiment_by_name(self.experiment)
        if existing is None:
            location = artifact_location(self.tracking_uri, self.experiment)
            try:
                return str(
                    client.create_experiment(self.experiment, artifact_location=location, tags=dict(_EXPERIMENT_TAGS))
                )
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            existing = client.get_experiment_by_name(self.experiment)  # created by another process meanwhile
        if existing is None or existing.lifecycle_stage != "active":
            raise TrackingRefusedError(
                "the experiment was deleted",
                file=self._shown_uri,
                field="experiment",
                value=self.experiment,
                remedy="Restore it with `mlflow experiments restore`, or choose another name",
            )
        return str(existing.experiment_id)

    def _runs(self, experiment_id: str, identity: str, journal: str | None = None) -> list[Run]:
        """The runs of an identity, the one to use first; with a journal only its own, or created by a child."""
        assert self._client is not None
        condition = f"tags.`{IDENTITY_TAG}` = '{safe_name(identity)}'"
        found = list(self._client.search_runs([experiment_id], condition, run_view_type=ViewType.ACTIVE_ONLY))
        if journal is not None:
            found = [run for run in found if _journal_of(run) in (journal, _NO_JOURNAL_YET)]

        def order(run: Run) -> tuple[bool, int, int, str]:
            position = int(run.data.tags.get(POSITION_TAG, -1))
            return _journal_of(run) == _NO_JOURNAL_YET, -run.info.start_time, -position, run.info.run_id

        return sorted(found, key=order)

    def _only_first(self, experiment_id: str, runs: Sequence[Run]) -> str:
        """The id of the first of several runs with one journal; the others are deleted if they are empty."""
        assert self._client is not None
        kept = str(runs[0].info.run_id)
        for double in runs[1:]:
            if POSITION_TAG in double.data.tags:
                continue
            for child in self._client.search_runs([experiment_id], f"tags.{_PARENT_TAG} = '{double.info.run_id}'"):
                self._client.set_tag(child.info.run_id, _PARENT_TAG, kept)
            self._client.delete_run(double.info.run_id)
        return kept

    def _parent(self, experiment_id: str, identity: str, start_ms: int) -> str:
        """The id of a sweep's run, which is created if it does not exist."""
        if known := self._runs(experiment_id, identity):
            return str(known[0].info.run_id)
        tags = {IDENTITY_TAG: safe_name(identity), _JOURNAL_TAG: _NO_JOURNAL_YET}
        return self._create(experiment_id, identity, tags, start_ms)

    def _create(self, experiment_id: str, name: str, tags: dict[str, str], start_ms: int) -> str:
        assert self._client is not None
        run = self._client.create_run(experiment_id, start_time=start_ms, tags=tags, run_name=name)
        return str(run.info.run_id)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except TrackingError:
            raise
        except MlflowException as error:
            raise self._translate(error.error_code, str(error.message)) from None
        except requests.HTTPError as error:
            status = error.response.status_code if error.response is not None else 500
            code = {401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED"}.get(status, "")
            raise self._translate(code, str(error)) from None
        except (OSError, requests.RequestException, SQLAlchemyError) as error:
            raise self._translate("", str(error)) from None
        except ImportError as error:
            raise missing_driver(self.tracking_uri, error) from None

    def _translate(self, code: str, text: str) -> TrackingError:
        return translated_error(code, text, self._shown_uri, first_contact=self._client is None)


def _journal_of(run: Run) -> str | None:
    journal: str | None = run.data.tags.get(_JOURNAL_TAG)
    return journal


def _run_tags(tags: Mapping[str, str]) -> list[RunTag]:
    return [RunTag(tracked_name(key), str(value)[:_MAX_TAG_LENGTH]) for key, value in tags.items()]


def _milliseconds(time_s: float) -> int:
    return int(time_s * 1000)


def _batches(items: Sequence[Any], size: int) -> Iterator[list[Any]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


@contextmanager
def _patient_requests() -> Iterator[None]:
    """Longer time-out for uploads: a server answers only when it has stored the file."""
    name = "MLFLOW_HTTP_REQUEST_TIMEOUT"
    usual = os.environ[name]
    os.environ[name] = str(max(int(usual), _ARTIFACT_TIMEOUT_S))
    try:
        yield
    finally:
        os.environ[name] = usual
