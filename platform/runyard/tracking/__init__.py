"""Tracking: the journal of a run, and its upload to MLflow.

MLflow reads its settings from the environment, some of them when it is imported: they are set here, before any module
of this package can import it.
"""

import os

# No reports about its use, no links printed amid the progress. MLflow's own defaults retry a dead server for four
# minutes; the replayer has its own patience. All can still be set from outside.
for _name, _value in {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}.items():
    os.environ.setdefault(_name, _value)
