"""The storage folder of all runs, and the format in which they are kept there."""

import errno
import json
import os
from pathlib import Path

from detector.errors import ConfigError
from detector.files import write_json
from runyard.spec import ExperimentSpec

FORMAT = 2
"""Raised with every change after which earlier runs can no longer be read. 1: before run folders kept their format."""

_FILE = "storage.json"


def default_storage() -> Path:
    """./runs; inside a Ray job a folder of the home directory, as the job's own directory does not last."""
    return Path.home() / "runyard" / "runs" if in_ray_job() else Path("runs").resolve()


def in_ray_job() -> bool:
    """True if this process is the driver of a job that was submitted to a cluster."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def storage_folder(spec: ExperimentSpec) -> Path:
    """Absolute folder of all runs; ConfigError for an address that is not a folder."""
    storage = (spec.runtime.storage or default_storage()).expanduser()
    if "://" in str(storage) or ":/" in str(storage):
        raise ConfigError(
            "must be a folder, on a cluster one that all nodes share",
            field="runtime.storage",
            value=str(storage),
            remedy="Mount a file system whose locks work on all nodes (NFS 4, EFS, Lustre, CephFS) and name its folder",
        )
    return storage.resolve()


def open_storage(storage: Path) -> None:
    """Create the storage folder with its format, or check the format of the one that is there.

    Raises ConfigError for a folder that cannot be written and for one of another format.
    """
    check_format(storage)
    try:
        storage.mkdir(parents=True, exist_ok=True)
        if not (storage / _FILE).exists():
            write_json(storage / _FILE, {"format": FORMAT})
        if not os.access(storage, os.W_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        raise not_writable(storage, error) from error


def check_storage(storage: Path) -> None:
    """ConfigError for a storage folder of another format, and for one that cannot be created or written; reads only."""
    existing = next(path for path in (storage, *storage.parents) if path.exists())
    if not existing.is_dir():
        raise not_writable(storage, NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)))
    if not os.access(existing, os.W_OK | os.X_OK):
        raise not_writable(storage, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))
    check_format(storage)


def check_format(storage: Path) -> None:
    """ConfigError where the storage folder holds runs of another format; reads only."""
    file = storage / _FILE
    if file.is_file():
        try:
            found = json.loads(file.read_text())["format"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"cannot be read ({error})", file=file, remedy="Use another --storage") from error
    elif storage.is_dir() and any(storage.glob("*/manifest.json")):
        found = 1
    else:
        return
    require_format(found, storage)


def require_format(found: object, folder: Path) -> None:
    """ConfigError, in one sentence, where runs of a folder are of another format than this version reads."""
    if found != FORMAT:
        raise ConfigError(
            f"holds runs of storage format {found}, expected {FORMAT}",
            file=folder,
            remedy="Use another --storage, or the version that wrote it",
        )


def not_writable(folder: Path, error: OSError) -> ConfigError:
    """The error of a storage folder that cannot be written."""
    return ConfigError(
        f"cannot be written ({error.strerror})",
        field="runtime.storage",
        file=folder,
        remedy="Name a folder with --storage that this user may write to",
    )
