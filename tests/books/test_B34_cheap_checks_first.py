"""B34: storage and tracking are checked before any image is decoded; a warm-up without an end is remarked."""

import io
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from detector.errors import DatasetError, InputError
from runyard.driver.run import run_one
from runyard.reports.report import Report
from runyard.spec import ExperimentSpec
from tests.runyard.conftest import Work


@pytest.fixture
def unreadable(spec: ExperimentSpec, tmp_path: Path) -> ExperimentSpec:
    """A run whose images cannot be decoded, so that any error before the images are read is told apart."""
    assert spec.source.data is not None
    copy = shutil.copytree(spec.source.data, tmp_path / "data")
    for path in (*(copy / "train").iterdir(), *(copy / "val").iterdir()):
        path.write_bytes(b"no image")
    return replace(spec, source=replace(spec.source, data=copy))


def run(spec: ExperimentSpec, work: Work, **runtime: Any) -> str:
    """Output of the driver on a run."""
    console = Console(file=io.StringIO(), width=300)
    run_one(
        replace(spec, runtime=replace(spec.runtime, **runtime)),
        "tiny",
        launcher="local",
        do=work,
        finish=lambda result: Report(),
        console=console,
    )
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_B34_the_images_are_what_is_found_last(unreadable: ExperimentSpec, work: Work, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetError):
        run(unreadable, work)
    for runtime, message in (
        ({"storage": tmp_path / "file"}, r"runtime\.storage: cannot be written"),
        ({"storage": tmp_path / "file" / "runs"}, r"runtime\.storage: cannot be written"),
        ({"storage": Path("s3://bucket/runs")}, r"runtime\.storage: must be a folder"),
        ({"tracking_uri": "ftp://host/mlflow"}, "expected a tracking store that MLflow 3 accepts"),
        ({"tracking_uri": f"sqlite:///{tmp_path}"}, "tracking"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            run(unreadable, work, **runtime)
        assert not isinstance(caught.value, DatasetError)
    assert work.done == []


def test_B34_a_warm_up_that_is_longer_than_the_training_is_remarked(spec: ExperimentSpec, work: Work) -> None:
    assert spec.data.train_limit == 12
    said = run(replace(spec, optim=replace(spec.optim, warmup_steps=500)), work)
    assert "the warm-up of 500 steps is longer than the training of 2 steps" in said
    assert "--optim.warmup-steps" in said
    for warmup_steps in (1, 2):
        said = run(replace(spec, optim=replace(spec.optim, warmup_steps=warmup_steps)), work)
        assert "warm-up" not in said


def test_a_first_step_above_the_rate_of_the_reference_batch_is_remarked(spec: ExperimentSpec, work: Work) -> None:
    """A batch of 256 begins at 1/3 of a rate that is 16 times as high; the paper's batch of 16 is not remarked."""
    assert spec.optim.warmup_ratio == 1 / 3
    said = run(replace(spec, optim=replace(spec.optim, batch_size=256, warmup_steps=1)), work)
    assert "the learning rate of the first step is 0.0533, with 256 images a step" in said
    assert "--optim.warmup-ratio 0.021" in said
    for changes in ({"batch_size": 48}, {"batch_size": 256, "warmup_ratio": 0.02}, {"batch_size": 16}):
        assert "learning rate" not in run(replace(spec, optim=replace(spec.optim, warmup_steps=1, **changes)), work)
