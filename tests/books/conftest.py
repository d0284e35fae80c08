"""Fixtures for the tests of findings: the tracking server with faults on demand, and stores of a test's own."""

from tests.runyard.tracking.conftest import (  # noqa: F401
    _created_database,
    _server,
    empty_database,
    impatient,
    server,
    tracking_uri,
)
