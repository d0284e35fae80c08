"""Names and values as MLflow accepts them: metric names, flat parameters, artifact folders. Imports no mlflow.

MLflow 3 allows letters, digits and `_ - . space : /` in names of metrics, parameters and tags, 250 characters, and no
name that is not its own normal form as a path.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from runyard.runs.manifest import without_secrets
from runyard.runs.names import safe_name

POSITION_TAG = "runyard.journal_seq"
"""Position in the journal up to which it was uploaded; a run without uploads lacks this tag."""

_NOT_ALLOWED = re.compile(r"[^\w\-. :]")
_MAX_NAME_LENGTH = 200
MAX_PARAMETER_LENGTH = 500
"""Longer parameter values go into an artifact: older servers refuse them, newer ones cut them at 6,000."""


def tracked_name(name: str) -> str:
    """The name under which a metric, parameter or tag is stored: unchanged if MLflow accepts it.

    Otherwise characters that MLflow refuses become '_', and six digits of the name's hash are added, so that two names
    never collide: 'AP@[.5:.95]' and 'AP@(.5:.95)' stay two metrics.
    """
    parts = [_NOT_ALLOWED.sub("_", part) for part in name.split("/")]
    parts = [part.replace(".", "_") if set(part) <= {"."} else part for part in parts if part]
    clean = "/".join(parts)[:_MAX_NAME_LENGTH].rstrip("/")
    if clean == name and name:
        return name
    return f"{clean or 'unnamed'}_{hashlib.sha256(name.encode('utf-8', 'surrogatepass')).hexdigest()[:6]}"


def artifact_folder(path: str) -> str:
    """An artifact folder whose every part is a safe name: '' and 'plots/ap' stay, '../x' becomes harmless."""
    return "/".join(safe_name(part) for part in PurePosixPath(path).parts if part != "/")


def flat_parameters(nested: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """A nested mapping as one level: {'model': {'backbone': {'name': 'resnet50'}}} -> 'model.backbone.name'.

    Lists become JSON, other values their text, credentials inside URIs are taken out; an empty mapping gives nothing.
    """
    flat: dict[str, str] = {}
    for key, value in nested.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, Mapping):
            flat |= flat_parameters(value, name)
        elif isinstance(value, list | tuple):
            flat[name] = without_secrets(json.dumps(value, ensure_ascii=False, default=str))
        else:
            flat[name] = without_secrets(str(value))
    return flat
