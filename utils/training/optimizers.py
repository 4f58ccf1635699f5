"""Optimizers by name: ``--optimizer sgd`` (the releases') or ``adamw``."""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from utils.training.configuration import TrainConfig


def sgd(learnable: Sequence[nn.Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    """Weight decay on every parameter, as LAD, CIRKD and MMSegmentation have it."""
    return torch.optim.SGD(learnable, config.lr, config.momentum, weight_decay=config.weight_decay, fused=True)


def adamw(learnable: Sequence[nn.Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    """Loshchilov and Hutter, arXiv 1711.05101, betas (momentum, 0.999).

    What has one dimension or none is free of decay: biases, weights of norms, layer scales.
    """
    groups = [
        {"params": [p for p in learnable if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in learnable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, config.lr, (config.momentum, 0.999), fused=True)


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {"sgd": sgd, "adamw": adamw}
