"""Optimizers by name: ``--optimizer sgd`` (the releases') or ``adamw``."""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from engine.settings import TrainConfig
from utils.errors import UserError


def make_sgd(learnable: Sequence[nn.Parameter], settings: TrainConfig) -> torch.optim.Optimizer:
    """Make SGD with weight decay on every parameter, as LAD, CIRKD and MMSegmentation have it.

    Raises:
        UserError: a momentum of 1 or more.
    """
    require_momentum(settings.momentum)
    optimizer = torch.optim.SGD(
        learnable, settings.lr, settings.momentum, weight_decay=settings.weight_decay, fused=True
    )
    if settings.momentum:
        for parameter in learnable:
            # fused SGD leaves a new buffer unwritten where the loss scaler skips the first step, and uses it then
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def make_adamw(learnable: Sequence[nn.Parameter], settings: TrainConfig) -> torch.optim.Optimizer:
    """Make AdamW (Loshchilov and Hutter, arXiv 1711.05101), betas (momentum, 0.999).

    Parameters with one dimension or none have no decay: biases, weights of norms, layer scales.

    Raises:
        UserError: a momentum of 1 or more.
    """
    require_momentum(settings.momentum)
    groups = [
        {"params": [p for p in learnable if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in learnable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, settings.lr, (settings.momentum, 0.999), fused=True)


def require_momentum(momentum: float) -> None:
    """Check that the steps of the past fade.

    Raises:
        UserError: the momentum is 1 or more.
    """
    if momentum >= 1:
        raise UserError(f"--momentum {momentum:g}: it must be below 1")


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {"sgd": make_sgd, "adamw": make_adamw}
STATES = {"sgd": 1, "adamw": 2}  # tensors of a parameter's size that an optimizer keeps for it
