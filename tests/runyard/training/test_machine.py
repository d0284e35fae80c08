"""The machine that trained, in one line."""

import torch

from runyard.runs.manifest import describe_machine
from runyard.training.machine import summary

TWO_GPUS = {
    "cpu": "A CPU",
    "cpus_usable": 16,
    "gpus": [{"name": "NVIDIA H100 80GB HBM3"}, {"name": "NVIDIA A100-SXM4-40GB"}],
    "gpu_driver": "550.54.15",
    "cuda": "12.8",
    "cudnn": 91002,
    "nccl": "2.27.3",
}


def test_gpus_with_their_software() -> None:
    software = "(driver 550.54.15, CUDA 12.8, cuDNN 91002, NCCL 2.27.3)"
    assert summary(TWO_GPUS, torch.device("cuda", 0), 8) == f"8 x NVIDIA H100 80GB HBM3 {software}"
    assert summary(TWO_GPUS, torch.device("cuda", 1), 1) == f"1 x NVIDIA A100-SXM4-40GB {software}"


def test_versions_that_are_not_known_are_named_so() -> None:
    machine = TWO_GPUS | {"gpu_driver": None}
    del machine["nccl"]
    text = summary(machine, torch.device("cuda"), 1)
    assert text == "1 x NVIDIA H100 80GB HBM3 (driver unknown, CUDA 12.8, cuDNN 91002, NCCL unknown)"


def test_cpus_are_said_even_where_the_machine_has_gpus() -> None:
    assert summary(TWO_GPUS, torch.device("cpu"), 2) == "CPUs: 2 worker(s), A CPU, 16 usable cores"
    assert summary(describe_machine(), torch.device("cpu"), 1).startswith("CPUs: 1 worker(s), ")
