"""Checkpoints: what is saved comes back bit for bit, whole or not at all, and nothing else is accepted."""

import contextlib
import hashlib
import json
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from detector.checkpoint import (
    checkpoint_fingerprint,
    load_checkpoint,
    read_metadata,
    recorded_metadata,
    save_checkpoint,
)
from detector.config import OptimConfig
from detector.errors import CheckpointError
from detector.optim import build_optimizer

OPTIMIZERS = {
    "sgd": OptimConfig(),
    "sgd without momentum": OptimConfig(momentum=0.0),
    "adamw": OptimConfig(optimizer="adamw"),
}


def small_model(seed: int = 0, width: int = 8) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, width, 3), nn.GroupNorm(2, width), nn.Conv2d(width, 2, 3, bias=False))
    return model.to(memory_format=torch.channels_last)


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    model(images.contiguous(memory_format=torch.channels_last)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def state(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    values = [value for entry in optimizer.state_dict()["state"].values() for value in entry.values()]
    return [*model.state_dict().values(), *(value for value in values if value is not None)]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model = small_model()
    optimizer = build_optimizer(model, OPTIMIZERS["sgd"])
    train_step(model, optimizer, 0)
    return save_checkpoint(tmp_path / "checkpoint", model, optimizer, {"step": 1})


@pytest.mark.parametrize("config", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_training_goes_on_from_a_checkpoint_as_if_it_had_never_stopped(config: OptimConfig, tmp_path: Path) -> None:
    model = small_model()
    optimizer = build_optimizer(model, config)
    for seed in range(2):
        train_step(model, optimizer, seed)
    save_checkpoint(tmp_path / "checkpoint", model, optimizer, {"step": 2})
    drawn = torch.rand(3)
    for seed in range(2, 4):
        train_step(model, optimizer, seed)

    restored = small_model(seed=1)
    restored_optimizer = build_optimizer(restored, config)
    metadata = load_checkpoint(tmp_path / "checkpoint", restored, restored_optimizer, random_state=True)
    assert metadata == {"step": 2}
    assert torch.equal(torch.rand(3), drawn)
    for seed in range(2, 4):
        train_step(restored, restored_optimizer, seed)
    for after, expected in zip(state(restored, restored_optimizer), state(model, optimizer), strict=True):
        assert torch.equal(after, expected)


@pytest.mark.parametrize("config", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_the_optimizer_state_gets_the_memory_format_of_its_parameter_back(config: OptimConfig, tmp_path: Path) -> None:
    # The fused kernels read both in the order of memory: with another format they would mix up the elements.
    model = small_model()
    optimizer = build_optimizer(model, config)
    train_step(model, optimizer, 0)
    save_checkpoint(tmp_path / "checkpoint", model, optimizer, {})
    load_checkpoint(tmp_path / "checkpoint", model, optimizer)
    for parameter, entry in optimizer.state.items():
        for value in entry.values():
            assert value is None or value.ndim == 0 or value.stride() == parameter.stride()


def test_weights_can_be_read_without_an_optimizer(saved: Path) -> None:
    model = small_model(seed=1)
    load_checkpoint(saved, model)
    expected = small_model()
    train_step(expected, build_optimizer(expected, OPTIMIZERS["sgd"]), 0)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), expected.parameters(), strict=True))


def test_recorded_metadata_are_the_same_and_need_no_tensors(saved: Path) -> None:
    before = checkpoint_fingerprint(saved)
    assert recorded_metadata(saved) == read_metadata(saved) == {"step": 1}
    (saved / "tensors.safetensors").write_bytes(b"damaged")
    assert recorded_metadata(saved) == {"step": 1}
    assert checkpoint_fingerprint(saved) == before
    (saved / "metadata.json").write_text("{}")
    with pytest.raises(CheckpointError, match="cannot be read as a checkpoint"):
        recorded_metadata(saved)


def test_a_checkpoint_replaces_the_one_that_stands_there_and_leaves_nothing_else(saved: Path) -> None:
    save_checkpoint(saved, small_model(seed=3), None, {"step": 2})
    assert read_metadata(saved) == {"step": 2}
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]
    assert sorted(path.name for path in saved.iterdir()) == ["metadata.json", "tensors.safetensors"]


@pytest.mark.parametrize("name", ["tensors.safetensors", "metadata.json"])
@pytest.mark.parametrize("damage", ["truncated", "emptied", "removed", "a bit flipped"])
def test_a_damaged_checkpoint_is_refused_and_changes_nothing(saved: Path, name: str, damage: str) -> None:
    content = bytearray((saved / name).read_bytes())
    if damage == "removed":
        (saved / name).unlink()
    else:
        content[len(content) // 2] ^= 1
        (saved / name).write_bytes({"truncated": content[:-9], "emptied": b""}.get(damage, content))
    model = small_model(seed=1)
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(CheckpointError, match="checkpoint"):
        load_checkpoint(saved, model)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize(
    ("model", "config", "message"),
    [
        (small_model(width=4), "sgd", r"of another shape or type \(model.0.bias \(8,\) instead of \(4,\)"),
        (small_model().double(), "sgd", "F32 instead of F64"),
        (small_model()[:2], "sgd", r"unexpected \(model.2.weight, optimizer.4.momentum_buffer\)"),
        (nn.Sequential(*small_model(), nn.Linear(2, 2)), "sgd", r"missing \(model.3.bias, model.3.weight, optimizer.5"),
        (small_model(), "adamw", r"missing \(optimizer.0.exp_avg, .*unexpected \(optimizer.0.momentum_buffer"),
    ],
    ids=["another width", "another type", "fewer layers", "more layers", "another optimizer"],
)
def test_a_checkpoint_of_another_model_is_refused_by_name(saved: Path, model, config: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(saved, model, build_optimizer(model, OPTIMIZERS[config]))


@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_mutated_checkpoint_raises_nothing_but_a_checkpoint_error(saved: Path, data: st.DataObject) -> None:
    """The checksum is made right again, so that what reads the tensors is reached."""
    tensors = bytearray((saved / "tensors.safetensors").read_bytes())
    header_end = 8 + int.from_bytes(tensors[:8], "little")
    described = json.loads((saved / "metadata.json").read_text())
    for position in data.draw(st.lists(st.integers(0, header_end - 1), max_size=4)):
        tensors[position] = data.draw(st.integers(0, 255))
    tensors = tensors[: data.draw(st.sampled_from([len(tensors), header_end, 8, 3]))]
    described["sha256"] = hashlib.sha256(tensors).hexdigest()
    json_value = st.recursive(st.none() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=3))
    described |= data.draw(st.dictionaries(st.sampled_from(["format", "sha256", "metadata"]), json_value, max_size=1))
    hostile = saved.with_name("hostile")
    hostile.mkdir(exist_ok=True)
    (hostile / "tensors.safetensors").write_bytes(tensors)
    (hostile / "metadata.json").write_text(json.dumps(described))
    model = small_model()
    with contextlib.suppress(CheckpointError):
        load_checkpoint(hostile, model, build_optimizer(model, OPTIMIZERS["sgd"]), random_state=True)
