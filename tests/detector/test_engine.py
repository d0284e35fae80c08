"""One optimiser step is the same step for any number of workers and micro-batches, and a NaN changes nothing."""

import importlib.util
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from benchmarks.workloads import training_batch
from detector.config import LossConfig
from detector.engine import STATISTICS, StepResult, TrainingEngine, autocast_dtype
from detector.models.retinanet import RetinaNet
from detector.optim import build_optimizer
from tests.processes import Forked, rank_environment

NAMES = ("loss_cls", "loss_box", "loss_iou", *STATISTICS)

SCRIPT = Path(__file__).with_name("engine_process.py")
_specification = importlib.util.spec_from_file_location("engine_process", SCRIPT)
assert _specification is not None
assert _specification.loader is not None
engine_process = importlib.util.module_from_spec(_specification)
_specification.loader.exec_module(engine_process)


@pytest.fixture(scope="module")
def alone(tiny_data: Path) -> dict[str, Any]:
    """One process, one batch a step."""
    return engine_process.trained(tiny_data)


@pytest.fixture(scope="module")
def ranks(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Measurements of two gloo processes."""
    result = tmp_path_factory.mktemp("engine") / "result"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    program = [str(SCRIPT), str(tiny_data), str(result)]
    processes = [Forked(program, environment | rank) for rank in rank_environment(world_size=2)]
    try:
        for process in processes:
            output, _ = process.communicate(timeout=200)
            assert process.returncode == 0, output
    finally:
        for process in processes:
            process.kill()
    return [torch.load(result.with_name(f"result.{rank}"), weights_only=True) for rank in range(2)]


def assert_same_training(measured: dict[str, Any], expected: dict[str, Any]) -> None:
    for name, gradient in expected["gradient"].items():
        scale = float(gradient.abs().max()) or 1.0
        torch.testing.assert_close(measured["gradient"][name], gradient, rtol=1e-4, atol=1e-5 * scale, msg=name)
    for name, weight in expected["weights"].items():
        torch.testing.assert_close(measured["weights"][name], weight, rtol=1e-4, atol=1e-5, msg=name)
    for numbers, wanted in zip(measured["numbers"], expected["numbers"], strict=True):
        assert numbers == pytest.approx(wanted, rel=1e-4)


def test_a_step_reports_finite_numbers_of_all_its_images(alone: dict[str, Any]) -> None:
    first, second = alone["numbers"]
    assert set(first) == {*NAMES, "loss"}
    assert (first["images"], second["images"]) == (4, 3)
    assert first["normaliser"] >= 4
    assert first["loss"] == pytest.approx(first["loss_cls"] + first["loss_box"] + first["loss_iou"])
    assert first["stop"] == first["non_finite"] == 0
    assert 0 < first["gradient_norm"] < float("inf")


@pytest.mark.parametrize("accumulation", [2, 4])
def test_N4_micro_batches_change_nothing(tiny_data: Path, alone: dict[str, Any], accumulation: int) -> None:
    # Four micro-batches of the second step's three images: the last one is a filler that must count for nothing.
    assert_same_training(engine_process.trained(tiny_data, accumulation=accumulation), alone)


@pytest.mark.processes
@pytest.mark.parametrize("accumulation", [1, 2])
def test_N4_two_workers_take_the_step_that_one_takes(
    ranks: list[dict[str, Any]], alone: dict[str, Any], accumulation: int
) -> None:
    for rank in ranks:
        assert_same_training(rank[f"accumulation {accumulation}"], alone)


@pytest.mark.processes
def test_N4_both_workers_hold_the_same_weights_bit_for_bit(ranks: list[dict[str, Any]]) -> None:
    first, second = (rank["accumulation 2"]["weights"] for rank in ranks)
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


@pytest.mark.processes
def test_N1_a_nan_on_one_rank_is_seen_by_all_and_no_rank_applies_it(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        # The third step is good on every rank again, and is not applied either: training on needs a decision.
        assert [numbers["non_finite"] for numbers in rank["poisoned"]["numbers"]] == [0, 1, 1]
        assert rank["poisoned"]["unchanged"]


def test_a_step_asks_for_no_value_of_a_tensor(tiny_data: Path) -> None:
    """So that the host never waits for a GPU: on tensors that have shapes and no values, a question is an error."""
    (batch,) = engine_process.steps(tiny_data, 0, 1, 1)[0]
    engine_process.new_engine().step([batch], 0.01)  # fills caches with tensors that have values
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        result = engine_process.new_engine().step([batch._map(mode.from_tensor)] * 2, 0.01, stop_requested=True)
        assert result.names == NAMES
        assert result.values.shape == (len(NAMES),)
        with pytest.raises(DataDependentOutputException):
            result.read()


@pytest.mark.processes
def test_a_stop_request_of_one_rank_is_read_by_all_at_the_same_step(ranks: list[dict[str, Any]]) -> None:
    assert [rank["stopped"] for rank in ranks] == [[0, 1, 0], [0, 1, 0]]


def test_N1_a_loss_that_overflows_is_not_applied(tiny_data: Path) -> None:
    engine = engine_process.new_engine(replace(LossConfig(), iou_weight=3e38))
    before = {name: tensor.clone() for name, tensor in engine.detector.state_dict().items()}
    first, _ = engine_process.steps(tiny_data, 0, 1, 1)
    assert engine.step(first, 0.01).read()["non_finite"] == 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in engine.detector.state_dict().items())


def test_the_normaliser_of_one_device_averages_over_devices(tiny_data: Path) -> None:
    engine = engine_process.new_engine(replace(LossConfig(), normaliser="per_device"))
    first, _ = engine_process.steps(tiny_data, 0, 1, 2)
    halves = [engine_process.new_engine().step([half], 0.0).read()["loss"] for half in first]
    assert engine.step(first, 0.01).read()["loss"] == pytest.approx(sum(halves) / 2, rel=1e-4)


def test_mixed_precision_is_for_gpus_that_have_it() -> None:
    cpu = torch.device("cpu")
    assert autocast_dtype("auto", cpu) is None
    assert autocast_dtype("float32", cpu) is None
    assert autocast_dtype("bfloat16", cpu) is torch.bfloat16


@pytest.mark.parametrize("in_hardware", [True, False])
def test_a_gpu_that_emulates_bfloat16_trains_in_float32(in_hardware: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: in_hardware or including_emulation
    )
    assert autocast_dtype("auto", torch.device("cuda", 0)) is (torch.bfloat16 if in_hardware else None)


def test_the_network_is_compiled_once_for_batches_of_all_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs: list[object] = []

    def count(graph: torch.fx.GraphModule, inputs: object) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda *args, **options: compiled(*args, **options, backend=count))
    torch.manual_seed(0)
    detector = RetinaNet(engine_process.MODEL, 6, LossConfig()).train()
    optim = engine_process.OPTIM
    engine = TrainingEngine(detector, build_optimizer(detector, optim), optim, compile_network=True)
    for images, size in ((2, (256, 320)), (4, (320, 256)), (3, (384, 288))):
        engine.step([training_batch(images, size, 6, most_boxes=3)], 0.01)
    assert len(graphs) == 1


def test_the_host_sleeps_while_it_waits_for_the_numbers_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[dict[str, object]] = []

    class Event:
        def __init__(self, **options: object) -> None:
            events.append(options)

        def record(self) -> None:
            events[-1]["recorded"] = True

    monkeypatch.setattr(torch.cuda, "Event", Event)
    with FakeTensorMode():
        result = StepResult.of(NAMES, torch.empty(len(NAMES), device="cuda"))
    assert events == [{"blocking": True, "recorded": True}]
    assert result.values.device == torch.device("cpu")
