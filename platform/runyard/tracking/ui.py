"""The MLflow UI on a store: the shell command that starts it, and a port that is free. Imports no mlflow."""

import shlex
import socket
import sys

from detector.errors import ConfigError
from runyard.runs.manifest import without_secrets
from runyard.tracking.stores import (
    URI_VARIABLE,
    TrackingRefusedError,
    TrackingUnavailableError,
    check_store,
    sqlite_file,
)

DEFAULT_PORT = 5000


def ui_command(tracking_uri: str, port: int = DEFAULT_PORT) -> str:
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
        command += f" --artifacts-destination {shlex.quote((database.parent / 'mlartifacts').as_uri())}"
    return command


def require_store(tracking_uri: str) -> None:
    """TrackingError if a resolved store has nothing to show: missing, read-only, away, or not MLflow's."""
    if check_store(tracking_uri):
        return
    shown = without_secrets(tracking_uri)
    if (database := sqlite_file(tracking_uri)) is not None:
        remedy = "Name the folder of runs with --storage, or start a run first"
        raise TrackingRefusedError("the tracking store does not exist", file=database, remedy=remedy)
    raise TrackingUnavailableError("the tracking store cannot be reached", file=shown, remedy="Start it")


def choose_port(port: int | None) -> int:
    """The port to listen on: the given one, any free one for 0; without one 5000, or a free one if that is taken.

    Raises ConfigError if the given port is out of range, taken, or needs more rights.
    """
    if port is None:
        try:
            return _bindable(DEFAULT_PORT)
        except OSError:
            return _bindable(0)
    if not 0 <= port <= 65535:
        raise ConfigError("expected a port from 0 to 65535", field="port", value=port)
    try:
        return _bindable(port)
    except OSError as error:
        remedy = "Name another one, or 0 for any free one"
        raise ConfigError(f"cannot be used ({error.strerror})", field="port", value=port, remedy=remedy) from error


def _bindable(port: int) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))
        return int(probe.getsockname()[1])
