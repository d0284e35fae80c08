"""The optimiser and the learning rate of every step: linear scaling, linear warm-up, step decay."""

from bisect import bisect_right

import torch
from torch import nn

from detector.config import OptimConfig


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """SGD or AdamW over every trainable parameter, weight decay on all of them (MMDetection's default).

    The fused implementations are used because they honour `found_inf`: a step whose gradients are not finite then
    changes neither weights nor momenta, without the host having to look.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            parameters,
            lr=config.scaled_learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            fused=True,
        )
    return torch.optim.AdamW(
        parameters,
        lr=config.scaled_learning_rate,
        betas=(config.momentum, 0.999),
        weight_decay=config.weight_decay,
        fused=True,
    )


def learning_rate_at(config: OptimConfig, step: int, steps_per_epoch: int) -> float:
    """The learning rate of optimiser step `step` (counted from 0 over the whole run).

    Warm-up rises linearly from `warmup_ratio` to 1 over `warmup_steps` steps and multiplies the decayed rate, as
    MMDetection's does.
    """
    epoch = step // steps_per_epoch
    rate = config.scaled_learning_rate * config.decay ** bisect_right(config.milestones, epoch)
    if step < config.warmup_steps:
        rate *= config.warmup_ratio + (1.0 - config.warmup_ratio) * step / config.warmup_steps
    return rate
