"""The learning rate of every step, and optimisers that leave out a step whose gradients are not finite."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from detector.config import OptimConfig
from detector.optim import build_optimizer, learning_rate_at

PAPER = OptimConfig()  # 0.01 for 16 images, 500 warm-up steps from a third, times 0.1 after epochs 8 and 11


def test_the_paper_s_schedule_by_hand() -> None:
    per_epoch = 1000
    assert learning_rate_at(PAPER, 0, per_epoch) == pytest.approx(0.01 / 3)
    assert learning_rate_at(PAPER, 250, per_epoch) == pytest.approx(0.01 * (1 / 3 + 2 / 3 * 0.5))
    assert learning_rate_at(PAPER, 500, per_epoch) == 0.01
    assert learning_rate_at(PAPER, 7999, per_epoch) == 0.01
    assert learning_rate_at(PAPER, 8000, per_epoch) == pytest.approx(1e-3)
    assert learning_rate_at(PAPER, 11000, per_epoch) == pytest.approx(1e-4)


def test_the_rate_is_proportional_to_the_global_batch() -> None:
    assert learning_rate_at(replace(PAPER, batch_size=8), 600, 1000) == pytest.approx(0.005)
    assert learning_rate_at(replace(PAPER, batch_size=64), 600, 1000) == pytest.approx(0.04)


def test_warm_up_multiplies_the_decayed_rate_where_both_apply() -> None:
    config = replace(PAPER, warmup_steps=10, milestones=(1,))
    assert learning_rate_at(config, 5, 5) == pytest.approx(0.001 * (1 / 3 + 2 / 3 * 0.5))


def test_without_warm_up_and_milestones_the_rate_is_constant() -> None:
    config = replace(PAPER, warmup_steps=0, milestones=())
    assert {learning_rate_at(config, step, 3) for step in range(50)} == {0.01}


@given(step=st.integers(0, 10_000), per_epoch=st.integers(1, 1000))
def test_the_rate_never_leaves_its_range(step: int, per_epoch: int) -> None:
    assert 0.01 * 0.1**2 / 3 <= learning_rate_at(PAPER, step, per_epoch) <= 0.01


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_step_with_found_inf_changes_neither_weights_nor_state(optimizer: str) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(3, 2)
    built = build_optimizer(layer, OptimConfig(optimizer=optimizer))  # type: ignore[arg-type]

    def step(found_inf: float) -> None:
        for parameter in layer.parameters():
            parameter.grad = torch.full_like(parameter, float("nan") if found_inf else 0.5)
        built.found_inf = torch.tensor(found_inf)  # type: ignore[attr-defined]
        built.step()

    def everything() -> list[torch.Tensor]:
        return [*layer.parameters(), *(value for state in built.state.values() for value in state.values())]

    step(0.0)
    before = [tensor.clone() for tensor in everything()]
    step(1.0)
    assert all(torch.equal(a, b) for a, b in zip(before, everything(), strict=True))
    step(0.0)
    assert not torch.equal(before[0], layer.weight)


def test_frozen_parameters_are_left_out() -> None:
    layer = nn.Linear(3, 2)
    layer.bias.requires_grad_(False)
    built = build_optimizer(layer, PAPER)
    assert [parameter.shape for group in built.param_groups for parameter in group["params"]] == [(2, 3)]
