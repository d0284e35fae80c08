"""B13: GPUs that are fewer than the workers, or that an autoscaler has yet to add, are an error, not a way to CPUs."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from detector.errors import ConfigError
from runyard.driver.run import run_one
from runyard.spec import ExperimentSpec

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A cluster of this machine that declares one GPU, whether there is one or not."""
    import ray

    ray.init(
        address="local",
        num_cpus=2,
        num_gpus=1,
        include_dashboard=False,
        object_store_memory=100_000_000,
        log_to_driver=False,
    )
    yield
    ray.shutdown()


@pytest.fixture
def spec_of(tiny_spec: ExperimentSpec) -> Callable[..., ExperimentSpec]:
    """A run that leaves its GPUs to the cluster; arguments are fields of its RuntimeConfig."""

    def make(**fields: Any) -> ExperimentSpec:
        return replace(tiny_spec, runtime=replace(tiny_spec.runtime, **{"gpus_per_worker": None, **fields}))

    return make


def test_B13_a_run_with_more_workers_than_gpus_is_refused_before_any_worker_starts(
    cluster: None, spec_of: Callable[..., ExperimentSpec], storage: Path
) -> None:
    spec = spec_of(workers=2, storage=storage)
    with pytest.raises(ConfigError) as refused:
        run_one(spec)
    assert str(refused.value) == (
        "runtime.workers: the cluster has 1 GPUs for 2 workers (found 2). "
        "Ask for as many workers as there are GPUs, or say --gpus-per-worker 0 to train on CPUs"
    )
    assert not list(storage.glob("*/attempts.jsonl"))


def test_B13_workers_that_the_gpus_are_enough_for_get_one_each(
    cluster: None, spec_of: Callable[..., ExperimentSpec]
) -> None:
    from runyard.training.ray_train import gpus_per_worker

    assert gpus_per_worker(spec_of(workers=1)) == 1
    assert gpus_per_worker(spec_of(workers=2, min_workers=1)) == 1
    assert gpus_per_worker(spec_of(workers=2, gpus_per_worker=0)) == 0


def test_B13_with_an_autoscaler_more_gpus_may_come(
    cluster: None, spec_of: Callable[..., ExperimentSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    from runyard.training.ray_train import check_resources, gpus_per_worker

    monkeypatch.setenv("RUNYARD_AUTOSCALING", "1")
    assert gpus_per_worker(spec_of(workers=8)) == 1
    check_resources(spec_of(workers=8), 1)


def test_B13_an_autoscaler_that_has_not_added_a_gpu_yet_has_to_be_told(
    spec_of: Callable[..., ExperimentSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cluster's answer is pretended: a second cluster without GPUs would tell the same."""
    import ray

    from runyard.training.ray_train import gpus_per_worker

    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 1.0})
    assert gpus_per_worker(spec_of(workers=8)) == 0
    monkeypatch.setenv("RUNYARD_AUTOSCALING", "1")
    with pytest.raises(ConfigError, match=r"the cluster has no GPU yet.*Say --gpus-per-worker 1, or 0"):
        gpus_per_worker(spec_of(workers=8))
    assert gpus_per_worker(spec_of(workers=8, gpus_per_worker=1)) == 1
