"""Exchange between ranks, and the plain form of a broken connection."""

import pytest
import torch
import torch.distributed as dist

from runyard.context import first_rank_decides, gather_on_first_rank, loader_processes, silent_worker
from runyard.training.local import LocalContext


def test_a_rank_alone_decides_and_gathers_for_itself() -> None:
    context = LocalContext(use_gpu=False)
    assert (context.rank, context.world_size, context.device) == (0, 1, torch.device("cpu"))
    assert first_rank_decides({"a": 1}, context) == {"a": 1}
    assert gather_on_first_rank([1], context) == [[1]]


def test_a_time_out_names_the_setting() -> None:
    gloo = RuntimeError("[/x/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 20000ms for recv operation")
    assert str(silent_worker(gloo, 20.0)) == "another worker did not answer for 20 s (runtime.collective_timeout_s)"
    nccl = dist.DistBackendError("Watchdog caught collective operation timeout: ... timed out in blocking wait")
    assert "did not answer" in str(silent_worker(nccl, 600.0))
    watchdog = dist.DistBackendError(
        "[Rank 1] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7, OpType=ALLREDUCE, NumelIn=5, "
        "NumelOut=5, Timeout(ms)=600000) ran for 600009 milliseconds before timing out."
    )
    assert "did not answer for 600 s" in str(silent_worker(watchdog, 600.0))


def test_a_lost_connection_says_so() -> None:
    gloo = RuntimeError("[/x/gloo/transport/tcp/pair.cc:538] Connection closed by peer [127.0.0.1]:4711")
    assert "Connection closed by peer" in str(silent_worker(gloo, 20.0))


def test_any_other_error_is_none_of_its_business() -> None:
    assert silent_worker(RuntimeError("shape '[2]' is invalid for input of size 3"), 20.0) is None


@pytest.mark.parametrize(
    ("device", "cpus", "asked", "processes"),
    [
        ("cuda:0", 1, None, 0),
        ("cuda:0", 4, None, 3),
        ("cuda:0", 64, None, 8),
        ("cuda:0", 4, 0, 0),
        ("cuda:0", 4, 12, 12),
        ("cpu", 4, None, 0),
        ("cpu", 4, 2, 2),
    ],
)
def test_a_gpu_gets_the_cpus_of_its_worker_but_one_for_loading(
    device: str, cpus: int, asked: int | None, processes: int
) -> None:
    context = LocalContext(use_gpu=False)
    context.device, context.cpus = torch.device(device), cpus
    assert loader_processes(asked, context) == processes


def test_processes_of_one_machine_share_its_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(16)))
    assert LocalContext(use_gpu=False).cpus == 16
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert LocalContext(use_gpu=False).cpus == 4
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "32")
    assert LocalContext(use_gpu=False).cpus == 1
