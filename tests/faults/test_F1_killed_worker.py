"""F1, F2, F5 and F6 on Ray: workers that are killed, hang, or fail again and again, and what the run makes of it."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from runyard.failures import TrainingError
from runyard.runs.folder import RunFolder
from runyard.runs.prepare import prepare
from runyard.spec import ExperimentSpec
from runyard.training.launch import launch

ROOT = Path(__file__).resolve().parents[2]

# Several Ray attempts each, with time-outs that a busy machine does not keep: run on request.
pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    import ray

    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=100_000_000,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": f"{ROOT / 'platform'}:{ROOT}"}},
    )
    yield
    ray.shutdown()


@pytest.fixture
def spec(tiny_spec: ExperimentSpec) -> ExperimentSpec:
    """Two workers, three epochs of three steps."""
    return replace(
        tiny_spec,
        optim=replace(tiny_spec.optim, epochs=3),
        runtime=replace(tiny_spec.runtime, workers=2, collective_timeout_s=60.0),
    )


def train(spec: ExperimentSpec, inject: Callable[[RunFolder], None] | None = None) -> RunFolder:
    """Trains on Ray, while `inject` runs in a thread beside; what that raises is raised."""
    prepared = prepare(spec)
    raised: list[BaseException] = []

    def injecting() -> None:
        assert inject is not None
        try:
            inject(prepared.folder)
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=injecting)
    if inject is not None:
        thread.start()
    try:
        launch(prepared.spec, prepared.folder, "ray")
    finally:
        if inject is not None:
            thread.join()
    if raised:
        raise raised[0]
    return prepared.folder


def worker(folder: RunFolder, rank: int) -> int:
    """The process id of one of two training workers; the journal's lock names rank 0's."""
    first = int(folder.journal.with_name("journal.jsonl.lock").read_text().split()[1])
    if rank == 0:
        return first
    (second,) = _workers() - {first}
    return second


def _workers() -> set[int]:
    """Ray's training workers that this very process has started."""
    parents: dict[int, int] = {}
    found = set()
    for process in Path("/proc").iterdir():
        try:
            parents[int(process.name)] = int((process / "stat").read_text().rpartition(") ")[2].split()[1])
            if b"RayTrainWorker" in (process / "cmdline").read_bytes():
                found.add(int(process.name))
        except (ValueError, OSError):
            continue

    def is_ours(pid: int) -> bool:
        while pid > 1 and pid != os.getpid():
            pid = parents.get(pid, 0)
        return pid == os.getpid()

    return {pid for pid in found if is_ours(pid)}


def test_F1_F2_killed_workers_are_replaced_and_the_run_is_the_one_never_killed(
    cluster: None, spec: ExperimentSpec, trajectory, wait_until, last_step, events
) -> None:
    expected = trajectory(train(replace(spec, runtime=replace(spec.runtime, name="never-killed"))))

    def kill(folder: RunFolder) -> None:
        # Mid-epoch, not at a report.
        wait_until(lambda: last_step(folder) == 4)
        os.kill(worker(folder, rank=1), signal.SIGKILL)
        # The moment a checkpoint is there: inside the report, which waits for the controller.
        wait_until(lambda: folder.checkpoint(6).exists())
        os.kill(worker(folder, rank=0), signal.SIGKILL)

    folder = train(spec, kill)
    trajectory(folder).assert_equal(expected)
    assert [event.payload["start_step"] for event in events(folder, "start")] == [0, 3, 6]
    failures = [event.payload["message"] for event in events(folder, "attempt_failed")]
    assert failures[0].startswith("attempt 1 failed: worker 1 died: ")
    assert failures[1].startswith("attempt 2 failed: worker 0 died: ")
    restored = [event.payload for event in events(folder, "restored")]
    assert [event["first_step"] for event in restored] == [4, 7]
    # From the last step before the kill to the first one after it. The limit is 60 s on a machine that is not
    # shared with other work.
    assert all(0 < event["seconds"] < 60 * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1)) for event in restored)


def test_F5_a_bug_ends_after_its_second_time_with_the_first_traceback(
    cluster: None, spec: ExperimentSpec, events
) -> None:
    once = replace(spec, optim=replace(spec.optim, epochs=1), runtime=replace(spec.runtime, workers=1))
    prepared = prepare(once)
    # Something that no code expects: the folder of evaluations cannot be made.
    (prepared.folder.root / "evaluation").write_text("")
    with pytest.raises(TrainingError, match="given up after 2 failures; the first was worker 0: ") as given_up:
        launch(prepared.spec, prepared.folder, "ray")
    (traceback,) = given_up.value.__notes__
    assert "Traceback (most recent call last)" in traceback
    assert "write_evaluation" in traceback
    first, second = events(prepared.folder, "attempt_failed")
    assert first.payload["details"] == traceback
    assert first.payload["message"].removeprefix("attempt 1") == second.payload["message"].removeprefix("attempt 2")
    # The training itself was done once, and is not lost.
    assert prepared.folder.checkpoints()[0] == prepared.folder.checkpoint(3)


@pytest.mark.slow
@pytest.mark.parametrize(("rank", "step"), [(1, 4), (0, 4), (0, 6)], ids=["rank 1", "rank 0", "rank 0 at a checkpoint"])
def test_F6_a_hung_worker_ends_the_attempt_in_time_and_is_replaced(
    cluster: None, spec: ExperimentSpec, wait_until, last_step, events, rank: int, step: int
) -> None:
    def hang(folder: RunFolder) -> None:
        wait_until(lambda: last_step(folder) >= step)
        os.kill(worker(folder, rank), signal.SIGSTOP)

    folder = train(replace(spec, runtime=replace(spec.runtime, collective_timeout_s=10.0)), hang)
    (failure,) = events(folder, "attempt_failed")
    (restored,) = events(folder, "restored")
    assert "another worker did not" in failure.payload["message"]
    assert "(runtime.collective_timeout_s)" in failure.payload["message"]
    # The time-out, Ray's half minute for a worker that may still end by itself, and the start of new ones.
    assert 10 < restored.payload["seconds"] < 120
    assert folder.checkpoints()[0] == folder.checkpoint(9)
