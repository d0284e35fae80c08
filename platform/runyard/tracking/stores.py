"""The tracking store of a run: its URI, whether it can be one, and a lock while it is created. Imports no mlflow.

Without any setting the store is a SQLite file in the storage folder, so that nothing has to be installed or started.
"""

import importlib.util
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from detector.errors import ConfigError, InputError
from runyard.locks import held
from runyard.runs.manifest import without_secrets
from runyard.runs.names import safe_name

URI_VARIABLE = "MLFLOW_TRACKING_URI"
_USER_VARIABLE = "MLFLOW_TRACKING_USERNAME"
_PASSWORD_VARIABLE = "MLFLOW_TRACKING_PASSWORD"
_SQLITE = ("sqlite:///", "sqlite+pysqlite:///")
_DATABASES = ("postgresql", "mysql", "mssql")
# SQLAlchemy's default driver of a database, and the one that this project's extra installs.
_DRIVERS = {"postgresql": ("psycopg", "psycopg2"), "mysql": ("MySQLdb", "pymysql")}
_EXTRAS = {"postgresql": "postgres", "mysql": "mysql"}
_REMEDY = "Use sqlite:////absolute/path/mlflow.db, or http://host:5000 of an MLflow server"
NOT_MLFLOW_REMEDY = "Check host, port and path: MLflow's own server listens on port 5000"
_SQLITE_HEADER = b"SQLite format 3\0"
_CHECK_TIMEOUT_S = 3.0


class TrackingError(InputError):
    """The tracking store cannot be used."""


class TrackingUnavailableError(TrackingError):
    """The store does not answer, or answers with a fault of its own; another try may succeed."""


class TrackingRefusedError(TrackingError):
    """The store refuses every request (credentials, a deleted experiment), or is not an MLflow store."""


class RunRefusedError(TrackingRefusedError):
    """The store refuses one run, which was deleted."""


class RecordRefusedError(TrackingError):
    """The store refuses this record and would refuse it again; other records may pass."""


def resolve_tracking_uri(uri: str | None, storage: Path) -> str:
    """The store's URI: the given one, else $MLFLOW_TRACKING_URI, else a SQLite file in the storage folder.

    SQLite paths become absolute, because workers and tools run in other folders; '%', '?' and '#' in them are quoted. A
    user and password inside an http(s) URI move to the environment variables that MLflow reads, so that no message can
    show them. Raises TrackingError for a form that MLflow 3 does not accept, such as a plain folder.
    """
    uri = uri or os.environ.get(URI_VARIABLE) or _sqlite_uri(storage.absolute() / "mlflow.db")
    scheme = urlsplit(uri).scheme
    if path := _sqlite_path(uri):
        if path.startswith((":", "file:")) or "?" in path:
            raise TrackingError("expected a plain SQLite file", field="tracking URI", value=uri, remedy=_REMEDY)
        return _sqlite_uri(Path(unquote(path)).expanduser().absolute())
    if scheme in ("http", "https") and urlsplit(uri).hostname:
        parts = urlsplit(uri)
        if parts.username is not None:
            os.environ[_USER_VARIABLE] = unquote(parts.username)
            os.environ[_PASSWORD_VARIABLE] = unquote(parts.password or "")
        return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl().rstrip("/")
    if scheme.partition("+")[0] in _DATABASES:
        usual, ours = _DRIVERS.get(scheme, ("", ""))
        if usual and not _is_installed(usual) and _is_installed(ours):
            return uri.replace(scheme, f"{scheme}+{ours}", 1)
        return uri
    problem = "expected a tracking store that MLflow 3 accepts"
    raise TrackingError(problem, field="tracking URI", value=without_secrets(uri), remedy=_REMEDY)


def sqlite_file(tracking_uri: str) -> Path | None:
    """The file of a resolved SQLite URI, None for any other store."""
    path = _sqlite_path(tracking_uri)
    return Path(unquote(path)) if path else None


def artifact_location(tracking_uri: str, experiment: str) -> str | None:
    """URI of a new experiment's artifacts: a folder next to the SQLite file; None leaves it to the server."""
    database = sqlite_file(tracking_uri)
    return (database.parent / "mlartifacts" / safe_name(experiment)).as_uri() if database else None


@contextmanager
def sqlite_lock(tracking_uri: str) -> Iterator[None]:
    """Keep Runyard's other processes out while a SQLite store is created, or searched and then written.

    If four processes open a fresh MLflow SQLite file at once, three die. Does nothing for other stores.
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


def check_store(tracking_uri: str) -> bool:
    """Check a resolved store: True if it answers now, TrackingError if it can never be an MLflow store.

    Takes milliseconds, at most 3 s for a server or database that accepts and does not answer; creates nothing. A store
    that is away (connection refused, status 500) is False: it may come back. So are a database that refuses us, and a
    SQLite file that does not exist yet.
    """
    if (database := sqlite_file(tracking_uri)) is not None:
        return check_database_file(database)
    if tracking_uri.startswith("http"):
        return _check_server(tracking_uri)
    _check_driver(tracking_uri)
    return _connects(tracking_uri)


def check_database_file(database: Path) -> bool:
    """Check a SQLite file: True if it exists, TrackingError if it is something else, or read-only.

    Never opens a pipe, which would wait for a writer.
    """
    remedy = "Move it away, or name another store with --tracking-uri"
    try:
        found = database.stat()
        if not stat.S_ISREG(found.st_mode):
            kind = "a folder" if stat.S_ISDIR(found.st_mode) else "a pipe or device"
            raise TrackingRefusedError(f"expected a SQLite file, found {kind}", file=database, remedy=remedy)
        with database.open("rb") as stream:
            header = stream.read(len(_SQLITE_HEADER))
    except FileNotFoundError:
        return False
    except OSError as error:
        raise TrackingRefusedError(f"cannot be read ({error.strerror})", file=database, remedy=remedy) from error
    if header and header != _SQLITE_HEADER:
        raise TrackingRefusedError("expected a SQLite file, found other content", file=database, remedy=remedy)
    if not (os.access(database, os.W_OK) and os.access(database.parent, os.W_OK)):
        raise TrackingRefusedError(
            "the tracking store is read-only", file=database, remedy="Make the file and its folder writable"
        )
    return bool(header)


def _check_server(tracking_uri: str) -> bool:
    """Check a server: True if MLflow's REST API answers. So do refused credentials: the client knows other kinds."""
    import requests

    shown = without_secrets(tracking_uri)
    user = os.environ.get(_USER_VARIABLE)
    try:
        response = requests.get(
            f"{tracking_uri}/api/2.0/mlflow/experiments/get-by-name",
            params={"experiment_name": "Default"},
            auth=None if user is None else (user, os.environ.get(_PASSWORD_VARIABLE, "")),
            timeout=_CHECK_TIMEOUT_S,
        )
    except (requests.exceptions.InvalidURL, UnicodeError) as error:
        raise TrackingRefusedError(f"expected a URL ({error})", file=shown, remedy=_REMEDY) from error
    except requests.RequestException as error:
        if "WRONG_VERSION_NUMBER" in str(error):
            raise TrackingRefusedError("the server does not speak TLS", file=shown, remedy="Use http://") from None
        if "BadStatusLine" in str(error):
            raise TrackingRefusedError(
                "expected an MLflow server, found no HTTP", file=shown, remedy=NOT_MLFLOW_REMEDY
            ) from None
        return False
    if response.status_code in (401, 403):
        return True
    if response.status_code >= 500:
        return False
    try:
        answer = response.json()
    except ValueError:
        answer = None
    if not (isinstance(answer, dict) and {"experiment", "error_code"} & answer.keys()):
        kind = response.headers.get("Content-Type", "no content type").partition(";")[0]
        problem = f"expected an MLflow server, found another web server (status {response.status_code}, {kind})"
        raise TrackingRefusedError(problem, file=shown, remedy=NOT_MLFLOW_REMEDY)
    return True


def _check_driver(tracking_uri: str) -> None:
    """TrackingRefusedError if the Python driver of a database is missing."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import SQLAlchemyError

    try:
        make_url(tracking_uri).get_dialect().import_dbapi()
    except ImportError as error:
        raise missing_driver(tracking_uri, error) from None
    except (SQLAlchemyError, ValueError) as error:
        problem = f"expected a database URI ({without_secrets(str(error))})"
        raise TrackingRefusedError(problem, file=without_secrets(tracking_uri), remedy=_REMEDY) from None


def _connects(tracking_uri: str) -> bool:
    """True if a database takes a connection within the time-out.

    MLflow's own first connection is tried again for 100 seconds. Drivers name their time-outs differently, and some do
    not count the greeting: the connection is made in a thread that is left alone when the time is over.
    """
    from sqlalchemy.engine import make_url

    url = make_url(tracking_uri)
    connected = threading.Event()

    def connect() -> None:
        # Drivers raise errors of their own without a common base.
        with suppress(Exception):
            dialect: Any = url.get_dialect()
            dbapi = dialect.import_dbapi()
            arguments, options = dialect(dbapi=dbapi).create_connect_args(url)
            connection = dbapi.connect(*arguments, **options)
            connected.set()
            connection.close()

    thread = threading.Thread(target=connect, name="database-check", daemon=True)
    thread.start()
    thread.join(_CHECK_TIMEOUT_S)
    return connected.is_set()


def missing_driver(tracking_uri: str, error: ImportError) -> TrackingRefusedError:
    """The error for a database whose Python driver is not installed; names the extra that brings it."""
    database = urlsplit(tracking_uri).scheme.partition("+")[0]
    extra = _EXTRAS.get(database)
    remedy = f"Install it: pip install 'runyard[{extra}]'" if extra else "Install it where the driver runs"
    return TrackingRefusedError(f"needs a database driver ({error})", file=without_secrets(tracking_uri), remedy=remedy)


def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _sqlite_path(uri: str) -> str:
    """The path in a SQLite URI as it stands there; empty for any other URI."""
    return next((uri.removeprefix(prefix) for prefix in _SQLITE if uri.startswith(prefix)), "")


def _sqlite_uri(path: Path) -> str:
    # SQLAlchemy unquotes the path and cuts it at '?'; quoting only what matters keeps ordinary paths readable.
    quoted = "".join(quote(character) if character in "%?#" else character for character in str(path))
    # With the driver's name MLflow does not create the folder that the quoted path would be without unquoting.
    return (_SQLITE[0] if quoted == str(path) else _SQLITE[1]) + quoted
