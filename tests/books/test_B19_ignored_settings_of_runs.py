"""B19: settings of a run that would have no effect are refused, and a plot that leaves rows out says so."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from detector.errors import ConfigError
from detector.evaluation.bootstrap import Interval
from runyard.reports.sweep_plots import plot_gains
from runyard.spec import ExperimentSpec
from tests.books.commands import run_script
