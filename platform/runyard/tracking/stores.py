"""Which tracking store a run uses and how a person opens it. Imports no mlflow.

Without any setting the store is a SQLite file beside the runs, so that nothing has to be installed or started.
"""

import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

from detector.errors import ConfigError, InputError
from runyard.locks import held
from runyard.runs.folder import safe_name
from runyard.runs.manifest import without_secrets

URI_VARIABLE = "MLFLOW_TRACKING_URI"
_USER_VARIABLE = "MLFLOW_TRACKING_USERNAME"
_PASSWORD_VARIABLE = "MLFLOW_TRACKING_PASSWORD"
_SQLITE = "sqlite:///"
_DATABASES = ("postgresql", "mysql", "mssql")
_REMEDY = "Use sqlite:////absolute/path/mlflow.db, or http://host:5000 of an MLflow server"


class TrackingError(InputError):
    """The tracking store cannot be used."""


class TrackingUnavailableError(TrackingError):
    """It does not answer, or answers with a fault of its own: it may come back, nothing is lost in the meantime."""


class TrackingRefusedError(TrackingError):
    """It refuses us (credentials, a deleted run): trying again changes nothing until a person mends it."""


class RecordRefusedError(TrackingError):
    """It refuses what was sent and would refuse it again; other records may pass."""


def resolve_tracking_uri(uri: str | None, storage: Path) -> str:
    """The store's URI: the given one, else $MLFLOW_TRACKING_URI, else a SQLite file in the storage folder.

    SQLite paths become absolute, because workers and tools run in other folders. A user and password inside an
    http(s) URI move to the environment variables that MLflow reads, so that no message can show them. Raises
    TrackingError for a form that MLflow 3 no longer takes, such as a plain folder.
    """
    uri = uri or os.environ.get(URI_VARIABLE) or f"{_SQLITE}{storage.absolute() / 'mlflow.db'}"
    scheme = urlsplit(uri).scheme
    if uri.startswith(_SQLITE) and len(uri) > len(_SQLITE):
        path = uri.removeprefix(_SQLITE)
        if path.startswith((":", "file:")) or "?" in path:
            raise TrackingError("is not a plain SQLite file", field="tracking URI", value=uri, remedy=_REMEDY)
        return f"{_SQLITE}{Path(path).expanduser().absolute()}"
    if scheme in ("http", "https") and urlsplit(uri).hostname:
        parts = urlsplit(uri)
        if parts.username is not None:
            os.environ[_USER_VARIABLE] = unquote(parts.username)
            os.environ[_PASSWORD_VARIABLE] = unquote(parts.password or "")
        return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl().rstrip("/")
    if scheme.partition("+")[0] in _DATABASES:
        return uri
    problem = "is not a tracking store that MLflow 3 takes"
    raise TrackingError(problem, field="tracking URI", value=without_secrets(uri), remedy=_REMEDY)


def sqlite_file(tracking_uri: str) -> Path | None:
    """The file of a resolved SQLite URI, None for any other store."""
    return Path(tracking_uri.removeprefix(_SQLITE)) if tracking_uri.startswith(_SQLITE) else None


def artifact_location(tracking_uri: str, experiment: str) -> str | None:
    """Where a new experiment keeps its artifacts: beside the SQLite file; None leaves it to the server."""
    database = sqlite_file(tracking_uri)
    return (database.parent / "mlartifacts" / safe_name(experiment)).as_uri() if database else None


@contextmanager
def sqlite_lock(tracking_uri: str) -> Iterator[None]:
    """Holds back other processes of ours while a SQLite store is created or searched-then-written.

    Of four processes that open a fresh MLflow SQLite file at once, three die. Does nothing for other stores.
    """
    database = sqlite_file(tracking_uri)
    if database is None:
        yield
        return
    with ExitStack() as stack:
        try:
            lock = database.with_name(database.name + ".lock")
            stack.enter_context(held(lock, "opening this tracking store", wait_s=None))
        except ConfigError as error:
            raise TrackingError(
                f"the tracking store cannot be created ({error.problem})", file=database, remedy=error.remedy
            ) from error
        yield


def ui_command(tracking_uri: str, port: int = 5000) -> str:
    """The one shell command that opens the MLflow UI on a resolved store, with this environment's Python."""
    python = shlex.quote(sys.executable)
    if tracking_uri.startswith("http"):
        return f"{python} -m webbrowser {shlex.quote(tracking_uri)}"
    shown = without_secrets(tracking_uri)
    store = shlex.quote(tracking_uri) if shown == tracking_uri else f'"${URI_VARIABLE}"'
    # One worker and no job runner: a third of the memory, and up 5 seconds sooner.
    command = f"MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false {python} -m mlflow server --workers 1 --port {port}"
    command += f" --backend-store-uri {store}"
    if (database := sqlite_file(tracking_uri)) is not None:
        command += f" --artifacts-destination {shlex.quote(str(database.parent / 'mlartifacts'))}"
    return command


def experiment_url(host: str, experiment_id: str) -> str:
    """The page with an experiment's runs; without the query MLflow 3 opens on its page for language models."""
    return f"{host.rstrip('/')}/#/experiments/{experiment_id}?workflowType=machine_learning"
