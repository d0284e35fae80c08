"""MLflow's errors as TrackingErrors, without credentials in their text. Imports no mlflow."""

from runyard.runs.manifest import without_secrets
from runyard.tracking.stores import (
    NOT_MLFLOW_REMEDY,
    RecordRefusedError,
    RunRefusedError,
    TrackingError,
    TrackingRefusedError,
    TrackingUnavailableError,
)

_CREDENTIAL_CODES = {"UNAUTHENTICATED", "PERMISSION_DENIED", "CUSTOMER_UNAUTHORIZED"}
_INVALID_CODES = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_ALREADY_EXISTS"}
_NOT_MLFLOW = ("ENDPOINT_NOT_FOUND", "not in a valid JSON format")
_PLAIN_REASONS = {
    "timed out": "no answer in time",
    "Connection refused": "connection refused",
    "Failed to resolve": "unknown host",
    "Name or service not known": "unknown host",
}


def translated_error(code: str, text: str, shown_uri: str, *, first_contact: bool) -> TrackingError:
    """The TrackingError for an error of MLflow's client, by its code and text.

    Args:
        code: MLflow's error code; empty for an error of the network or database.
        shown_uri: the store's URI without credentials.
        first_contact: the store has not answered yet. Later a proxy's error page may stand in for it for a while.
    """
    known = [reason for sign, reason in _PLAIN_REASONS.items() if sign in text]
    reason = known[0] if known else " ".join(without_secrets(text).split())[:300]
    if "Invalid Host header" in text:
        remedy = "Start that server with --allowed-hosts naming the host and port by which it is called"
        return TrackingRefusedError("the tracking server refuses its own host name", file=shown_uri, remedy=remedy)
    if code in _CREDENTIAL_CODES:
        remedy = "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        return TrackingRefusedError(
            f"the tracking server refuses these credentials ({code})", file=shown_uri, remedy=remedy
        )
    if code == "RESOURCE_DOES_NOT_EXIST":
        return RunRefusedError(reason, file=shown_uri, remedy="Was the run or experiment deleted?")
    if first_contact and any(sign in f"{code} {text}" for sign in _NOT_MLFLOW):
        problem = "expected an MLflow server, found another web server"
        return TrackingRefusedError(problem, file=shown_uri, remedy=NOT_MLFLOW_REMEDY)
    if code in _INVALID_CODES:
        return RecordRefusedError(reason, file=shown_uri)
    return TrackingUnavailableError(
        f"the tracking store cannot be reached ({reason})", file=shown_uri, remedy="Start it, or check the URI"
    )
