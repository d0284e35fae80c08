"""B20: events are told in words, settings of a start do not stay in the environment, numbers of GPUs are checked."""

import io
import os
from dataclasses import replace

import pytest
from rich.console import Console

from detector.errors import ConfigError
from runyard.driver.jobs import Job
from runyard.driver.progress import RunProgress
from runyard.runs.prepare import locate
from runyard.spec import ExperimentSpec, RuntimeConfig
from runyard.tracking.journal import Journal


@pytest.mark.parametrize(
    ("event", "text"),
    [
        (
            {"event": "failure", "attempt": 2, "error": "worker 1 died", "details": "Traceback"},
            "failure: attempt 2, error worker 1 died",
        ),
        ({"event": "warning", "message": "2 workers go on"}, "2 workers go on"),
        ({"event": "non_finite", "step": 3, "loss": "nan"}, "non finite: step 3, loss nan"),
        (
            {"event": "machine", "message": "training on 2 x A GPU", "gpus": [{"name": "A GPU"}]},
            "training on 2 x A GPU",
        ),
    ],
)
def test_B20_progress_prints_sentences_and_no_dictionaries(
    spec: ExperimentSpec, event: dict[str, object], text: str
) -> None:
    located, folder = locate(spec)
    console = Console(file=io.StringIO(), width=200)
    with RunProgress(Job("id", "tiny", "train", located, folder), console), Journal(folder.journal) as journal:
        journal.append("event", event)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert said == f"  {text}\n"
    assert "{" not in said


def test_B20_a_start_leaves_the_environment_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    from runyard.training.ray_train import _environment

    monkeypatch.setenv("RAY_TRAIN_COLLECTIVE_TIMEOUT_S", "5")
    monkeypatch.delenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", raising=False)
    before = dict(os.environ)
    settings = {"RAY_TRAIN_COLLECTIVE_TIMEOUT_S": "600", "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10"}

    def fail_within() -> None:
        with _environment(settings):
            assert settings.items() <= os.environ.items()
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        fail_within()
    assert dict(os.environ) == before


@pytest.mark.parametrize("name", ["gpus_per_worker", "cpus_per_worker", "workers", "accumulation"])
def test_B20_numbers_of_devices_are_checked(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"runtime\.{name}: expected at least"):
        replace(RuntimeConfig(), **{name: -1})
