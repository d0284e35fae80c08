"""Training, post-processing, evaluation and checkpoints on an accelerator, pretended: values, waits and launches.

The values are those of a CPU bit for bit. The budgets are what the code takes today, so that no change makes it more
without a decision: the host launches every operator, and cannot launch ahead while it waits.
"""

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.workloads import HeadCase, to_device, trained_outputs, training_batch
from detector.checkpoint import load_checkpoint, save_checkpoint
from detector.config import BackboneConfig, LossConfig, OptimConfig, RetinaNetConfig, ScoringConfig
from detector.data.batching import Batch
from detector.engine import TrainingEngine
from detector.models import matching, postprocess
from detector.models.anchors import _all_levels
from detector.models.detector import Detections, LossSums, ScoringRow
from detector.models.heads import HeadOutputs
from detector.models.postprocess import postprocess_rows
from detector.models.retinanet import RetinaNet
from detector.optim import build_optimizer
from detector.predictor import Predictor
from tests.detector.pretended_device import Cost, device, hollow, pretended, shapes_only, values

SMALL = RetinaNetConfig(
    backbone=BackboneConfig(name="resnet18", weights="none"), fpn_channels=16, tower_depth=1, tower_norm="group"
)
CLASSES = 6
CPU = torch.device("cpu")

LAUNCHES_OF_A_STEP = 1323
"""Operators of one step of the paper's detector with 16 images of 800 x 1344 and 20 objects each, in mixed precision.

The goal is 1,900.
"""

OUTPUT_SIZE, IMAGES = (256, 320), 16
WAITS_OF_POST_PROCESSING, LAUNCHES_OF_POST_PROCESSING = 240, 3800
"""A batch of 16 images of 256 x 320 at alpha 0.5; most are for each image. The goal is 8 waits and 600 launches."""


def small_batch(images: int = 2, size: tuple[int, int] = (96, 128)) -> Batch:
    return training_batch(images, size, CLASSES, most_boxes=4)


def engine_on(place: torch.device) -> TrainingEngine:
    torch.manual_seed(0)
    detector = RetinaNet(SMALL, CLASSES, LossConfig()).train().to(memory_format=torch.channels_last).to(place)
    return TrainingEngine(detector, build_optimizer(detector, OptimConfig()), OptimConfig())


def check_step() -> None:
    """Three steps: equal to the CPU's, without a wait after the first, even at a shape that is new."""
    on_cpu, batches = engine_on(CPU), [small_batch(), small_batch(), small_batch(3, (96, 64))]
    expected = [on_cpu.step([batch], 0.01).read() for batch in batches]
    _all_levels.cache_clear()
    with pretended() as cost:
        engine = engine_on(device())
        found = [engine.step([batches[0]], 0.01)]
        cost.clear()
        found += [engine.step([batch], 0.01) for batch in batches[1:]]
        assert not cost.waits, str(cost.waits)
        assert [result.read() for result in found] == expected
    weights = engine.detector.state_dict()
    assert all(torch.equal(tensor, values(weights[name])) for name, tensor in on_cpu.detector.state_dict().items())


def launches_of_a_step(images: int = 16, size: tuple[int, int] = (800, 1344)) -> Cost:
    """The cost of a step of the paper's detector with 20 objects an image, on tensors without values."""
    detector = RetinaNet(RetinaNetConfig(backbone=BackboneConfig(weights="imagenet")), 80).train()
    hollow(detector.to(memory_format=torch.channels_last))
    batch = training_batch(1, (64, 64))
    shape = {"images": (images, 3, *size)}
    with pretended() as cost:
        empty = {
            field.name: shapes_only(tensor.new_empty(shape.get(field.name, (images, *tensor.shape[1:]))))
            for field in fields(batch)
            if isinstance(tensor := getattr(batch, field.name), Tensor)
        }
        engine = TrainingEngine(
            detector, build_optimizer(detector, OptimConfig()), OptimConfig(), autocast_dtype=torch.bfloat16
        )
        engine.step([replace(batch, **empty)], 0.01)
        cost.clear()
        engine.step([replace(batch, **empty)], 0.01)
    return cost


def check_launches_of_a_step() -> None:
    cost = launches_of_a_step()
    assert not cost.waits, str(cost.waits)
    assert cost.launches.total() <= LAUNCHES_OF_A_STEP, str(cost.launches)


def outputs_of(images: int) -> HeadCase:
    """Outputs of a trained detector for several images."""
    cases = [trained_outputs(OUTPUT_SIZE, seed=seed) for seed in range(images)]

    def levels(name: str) -> tuple[Tensor, ...]:
        of_images = (getattr(case.outputs, name) for case in cases)
        return tuple(torch.cat(level) for level in zip(*of_images, strict=True))

    first = cases[0]
    outputs = HeadOutputs(
        levels("cls_logits"), levels("box_deltas"), levels("iou_logits"), first.outputs.feature_shapes
    )
    valid = first.anchor_valid.repeat(images, 1)
    valid[:, ::97] = False
    return HeadCase(outputs, first.anchors, valid, first.image_sizes.repeat(images, 1))


def rows_of(case: HeadCase, rows: Sequence[ScoringRow], truth: Sequence[Tensor]) -> list[list[Detections]]:
    return postprocess_rows(case.outputs, case.anchors, case.anchor_valid, case.image_sizes, rows, truth)


def assert_same_detections(found: list[list[Detections]], expected: list[list[Detections]]) -> None:
    for found_row, expected_row in zip(found, expected, strict=True):
        for image, on_cpu in zip(found_row, expected_row, strict=True):
            for field in fields(Detections):
                values_found = values(getattr(image, field.name))
                torch.testing.assert_close(values_found, getattr(on_cpu, field.name), rtol=0, atol=0, equal_nan=True)


def check_post_processing(images: int, alpha: float) -> Cost:
    case, row = outputs_of(images), ScoringRow(ScoringConfig(alpha=alpha))
    expected = rows_of(case, [row], [])
    with pretended() as cost:
        on_device = to_device(case, device())
        cost.clear()
        found = rows_of(on_device, [row], [])
    assert sum(len(image.scores) for image in expected[0]) > 20 * images
    assert_same_detections(found, expected)
    return cost


def check_post_processing_costs() -> None:
    cost = check_post_processing(IMAGES, 0.5)
    assert cost.waits.total() <= WAITS_OF_POST_PROCESSING, str(cost.waits)
    assert cost.launches.total() <= LAUNCHES_OF_POST_PROCESSING, str(cost.launches)


def check_evaluation() -> None:
    """Two batches of different shapes, with all kinds of rows, through the network and the post-processing."""
    rows = [ScoringRow(ScoringConfig(score_threshold=0.001)), ScoringRow(ScoringConfig(confidence="none"))]
    rows.append(ScoringRow(ScoringConfig(score_threshold=0.001), oracle=True))
    batches = [small_batch(3), small_batch(2, (64, 96))]

    def detector() -> RetinaNet:
        torch.manual_seed(0)
        made = RetinaNet(SMALL, CLASSES)
        torch.nn.init.normal_(made.heads.cls_logits.weight, std=1.0)
        return made

    on_cpu = Predictor(detector(), CPU)
    expected = [on_cpu(batch, rows) for batch in batches]
    assert all(len(image.scores) for of_batch in expected for row in of_batch for image in row)
    with pretended():
        predictor = Predictor(detector(), device())
        for batch, of_batch in zip(batches, expected, strict=True):
            assert_same_detections(predictor(batch, rows), of_batch)


def test_a_step_is_the_cpus_bit_for_bit_and_waits_for_nothing() -> None:
    check_step()


def test_a_step_at_full_size_has_a_bounded_number_of_launches() -> None:
    check_launches_of_a_step()


@pytest.mark.parametrize("alpha", [0.5, 0.1, 0.0, 1.0])
def test_post_processing_is_the_cpus_bit_for_bit(alpha: float) -> None:
    check_post_processing(3, alpha)


def test_post_processing_has_a_bounded_number_of_waits_and_launches() -> None:
    check_post_processing_costs()


def test_evaluation_is_the_cpus_bit_for_bit() -> None:
    check_evaluation()


def test_a_checkpoint_of_the_device_is_the_cpus(tmp_path: Path) -> None:
    batch, on_cpu = small_batch(), engine_on(CPU)
    on_cpu.step([batch], 0.01)
    with pretended():
        engine = engine_on(device())
        engine.step([batch], 0.01)
        save_checkpoint(tmp_path / "checkpoint", engine.detector, engine.optimizer, {"step": 1})
        restored = engine_on(device())
        load_checkpoint(tmp_path / "checkpoint", restored.detector, restored.optimizer)
        again = restored.step([batch], 0.01).read()
    loaded = engine_on(CPU)
    load_checkpoint(tmp_path / "checkpoint", loaded.detector, loaded.optimizer)
    for name, tensor in on_cpu.detector.state_dict().items():
        assert torch.equal(loaded.detector.state_dict()[name], tensor), name
    for name, parameter in on_cpu.detector.named_parameters():
        assert loaded.detector.get_parameter(name).stride() == parameter.stride(), name
    assert on_cpu.step([batch], 0.01).read() == loaded.step([batch], 0.01).read() == again


def test_tensors_of_two_devices_in_one_operator_are_an_error() -> None:
    with pretended():
        on_device = torch.ones(2, device=device())
        assert (on_device + torch.tensor(1.0)).tolist() == [2.0, 2.0]  # a number may come from anywhere
        with pytest.raises(RuntimeError, match="add: expected all tensors on one device, found pretended:0 and cpu"):
            on_device + torch.ones(2)
        with pytest.raises(TypeError, match="can't convert pretended:0 tensor to numpy"):
            on_device.numpy()


def test_everything_that_waits_is_counted() -> None:
    with pretended() as cost:
        on_device = torch.arange(3.0, device=device())
        assert not cost.waits
        mask = on_device > 1
        reads: list[Callable[[], Any]] = [
            on_device[1].item,
            on_device.tolist,
            lambda: bool(mask.any()),
            lambda: on_device[mask],
            mask.nonzero,
            lambda: on_device[torch.tensor([0, 1])],
            lambda: torch.equal(on_device, on_device),
            lambda: torch.tensor([1.0], device=device()),
            lambda: torch.ones(2).to(device()),
            on_device.cpu,
        ]
        for number, read in enumerate(reads, 1):
            read()
            assert cost.waits.total() == number, (number, cost.waits)
        torch.ones(2).to(device(), non_blocking=True)
        assert cost.waits.total() == len(reads)
        assert cost.uploads == 1


def plant(monkeypatch: pytest.MonkeyPatch, change: Callable[[LossSums], Any]) -> None:
    """Let the losses of the detector do something more, on what they return."""
    honest = RetinaNet.losses

    def planted(self: RetinaNet, batch: Batch) -> LossSums:
        sums = honest(self, batch)
        weighted = dict(sums.weighted)
        weighted["cls"] = weighted["cls"] + change(sums)
        return LossSums(weighted, sums.normaliser)

    monkeypatch.setattr(RetinaNet, "losses", planted)


def test_a_value_that_is_read_in_a_step_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, lambda sums: 0.0 * sums.normaliser.item())
    with pytest.raises(AssertionError, match="_local_scalar_dense"):
        check_step()


def test_a_tensor_of_the_host_in_a_step_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, lambda sums: (sums.normaliser * torch.zeros(1)).sum())
    with pytest.raises(RuntimeError, match="mul: expected all tensors on one device"):
        check_step()


def test_an_upload_in_every_step_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, lambda sums: torch.tensor([0.0]).to(sums.normaliser.device).sum())
    with pytest.raises(AssertionError, match="upload"):
        check_step()


def test_a_loop_over_the_images_of_a_step_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matching, "_DEVICE_ELEMENTS", 1)  # the matching takes an image at a time then
    with pytest.raises(AssertionError, match="maximum"):
        check_launches_of_a_step()


def test_a_value_that_is_read_for_every_image_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = postprocess.candidates_to_detections

    def planted(candidates: postprocess.Candidates, *rest: Any) -> Detections:
        candidates.boxes.sum().item()
        return honest(candidates, *rest)

    monkeypatch.setattr(postprocess, "candidates_to_detections", planted)
    with pytest.raises(AssertionError, match="_local_scalar_dense"):
        check_post_processing_costs()


def test_values_that_differ_from_the_cpus_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = postprocess.clip_boxes
    monkeypatch.setattr(
        postprocess, "clip_boxes", lambda boxes, sizes: honest(boxes, sizes) + 1e-4 * (boxes.device != CPU)
    )
    with pytest.raises(AssertionError, match="Tensor-likes are not equal"):
        check_post_processing(3, 0.5)
