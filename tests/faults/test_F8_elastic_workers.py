"""F8 on Ray: a node is lost and the run goes on with fewer workers, a node comes and it has more again."""

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from runyard.runs.folder import RunFolder
from runyard.runs.prepare import prepare
from runyard.spec import ExperimentSpec
from runyard.tracking.journal import effective_metrics
from runyard.training import ray_train
from runyard.training.launch import launch
from runyard.training.stopping import request_stop

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A head without places for workers, and two nodes with one each."""
    import ray
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 80_000_000})
    for _ in range(2):
        nodes.add_node(num_cpus=1, object_store_memory=80_000_000)
    ray.init(
        address=nodes.address,
        log_to_driver=False,
        logging_level="error",
        runtime_env={"env_vars": {"PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}"}},
    )
    yield nodes
    ray.shutdown()
    nodes.shutdown()


def test_F8_a_lost_node_shrinks_the_run_and_its_return_grows_it(
    cluster: Any,
    tiny_spec: ExperimentSpec,
    monkeypatch: pytest.MonkeyPatch,
    runs,
    wait_until,
    last_step,
    events,
) -> None:
    monkeypatch.setattr(ray_train, "RESIZE_INTERVAL_S", 5.0)
    # Longer than the test, which ends the run when it has seen enough.
    spec = replace(
        tiny_spec,
        optim=replace(tiny_spec.optim, epochs=400, milestones=(399,)),
        runtime=replace(tiny_spec.runtime, workers=2, min_workers=1, collective_timeout_s=60.0),
    )
    prepared = prepare(spec)
    folder = prepared.folder
    ended: list[BaseException] = []

    def train() -> None:
        try:
            launch(prepared.spec, folder, "ray")
        except BaseException as error:
            ended.append(error)

    training = threading.Thread(target=train)
    training.start()
    try:
        wait_until(lambda: last_step(folder) >= 4 or ended, timeout_s=200)
        cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
        wait_until(lambda: workers(folder, events) == [2, 1] or ended, timeout_s=200)
        shrunk_at = last_step(folder)
        wait_until(lambda: last_step(folder) >= shrunk_at + 2 or ended)
        began = time.monotonic()
        cluster.add_node(num_cpus=1, object_store_memory=80_000_000)
        wait_until(lambda: workers(folder, events) == [2, 1, 2] or ended, timeout_s=200)
        grown_at = last_step(folder)
        wait_until(lambda: last_step(folder) >= grown_at + 4 or ended)
        print(f"grown {time.monotonic() - began:.0f} s after the node came")
    finally:
        request_stop(folder)
        training.join()
    assert isinstance(ended[0], KeyboardInterrupt), ended
    shrunk, grown = (event.payload for event in events(folder, "restored"))
    print(f"went on with one worker after {shrunk['seconds']} s, with two after {grown['seconds']} s")
    (failure,) = events(folder, "attempt_failed")
    assert "worker" in failure.payload["message"]
    warnings = [event.payload["message"] for event in events(folder, "warning")]
    assert ["2 worker(s), 1 go on" in warnings[0], "1 worker(s), 2 go on" in warnings[1]] == [True, True]

    curves = effective_metrics(folder.journal)
    steps = [step for step, _ in curves["train/loss"]]
    assert steps == list(range(1, last_step(folder) + 1))
    # One process that nothing happened to sees the same images in the same order, at the same learning rate.
    alone = replace(spec, runtime=replace(spec.runtime, name="alone"))
    runs.kill_after_step(alone, last_step(folder))
    expected = effective_metrics(runs.folder(alone).journal)
    for name, tolerance in {"learning_rate": 0.0, "epoch": 0.0, "loss": 0.02}.items():
        curve = [value for _, value in expected[f"train/{name}"]][: len(steps)]
        assert [value for _, value in curves[f"train/{name}"]] == pytest.approx(curve, rel=tolerance), name


def workers(folder: RunFolder, events: Any) -> list[int]:
    """Number of workers of each attempt."""
    return [event.payload["workers"] for event in events(folder, "start")]
