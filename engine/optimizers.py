"""Optimizers by name: ``--optimizer sgd`` (the releases') or ``adamw``."""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from engine.settings import TrainConfig
from utils.errors import UserError


def sgd(learnable: Sequence[nn.Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    """Weight decay on every parameter, as LAD, CIRKD and MMSegmentation have it."""
    optimizer = torch.optim.SGD(learnable, config.lr, config.momentum, weight_decay=config.weight_decay, fused=True)
    for parameter in learnable if config.momentum else ():
        # fused SGD leaves a new memory unwritten where the loss scale has the first step skipped, and uses it then
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def adamw(learnable: Sequence[nn.Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    """Loshchilov and Hutter, arXiv 1711.05101, betas (momentum, 0.999).

    What has one dimension or none is free of decay: biases, weights of norms, layer scales.

    Raises UserError: a momentum that is no beta.
    """
    if config.momentum >= 1:
        raise UserError(f"--momentum {config.momentum:g}: with --optimizer adamw it must be below 1")
    groups = [
        {"params": [p for p in learnable if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in learnable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, config.lr, (config.momentum, 0.999), fused=True)


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {"sgd": sgd, "adamw": adamw}
