"""Exchange between ranks, and the plain form of a broken connection."""

import torch
import torch.distributed as dist

from runyard.context import first_rank_decides, gather_on_first_rank, silent_worker
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


def test_a_lost_connection_says_so() -> None:
    gloo = RuntimeError("[/x/gloo/transport/tcp/pair.cc:538] Connection closed by peer [127.0.0.1]:4711")
    assert "Connection closed by peer" in str(silent_worker(gloo, 20.0))


def test_any_other_error_is_none_of_its_business() -> None:
    assert silent_worker(RuntimeError("shape '[2]' is invalid for input of size 3"), 20.0) is None
