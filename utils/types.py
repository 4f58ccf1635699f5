"""The records that models, losses, datasets and the engine exchange."""

from typing import NamedTuple

import torch
from torch import Tensor

from utils.distributed import all_reduce_mean

IGNORE_INDEX = 255  # the one ignore label inside the project; every data set maps its own to it


def valid_pixels(label: Tensor) -> Tensor:
    """How many pixels of the global batch have a label, over the number of processes: float32, on the device."""
    return all_reduce_mean((label != IGNORE_INDEX).sum(dtype=torch.float32))


class Output(NamedTuple):
    """What every network returns and every loss takes."""

    logits: Tensor  # [B, K, h, w] at head resolution: never upsampled inside the model
    aux: tuple[Tensor, ...]  # auxiliary logits, possibly empty
    feat: Tensor  # [B, C, h, w], the input of the classifier

    def full_precision(self) -> "Output":
        """Half-precision maps as float32; losses over probabilities need it even under autocast."""

        def full(x: Tensor) -> Tensor:
            return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x

        return Output(full(self.logits), tuple(full(a) for a in self.aux), full(self.feat))


class Supervision(NamedTuple):
    """How one logit map of a network is supervised: the network carries it, the task loss reads it."""

    kind: str = "ce"  # a key of losses.task.CRITERIA
    align_corners: bool = False  # of the bilinear upsampling to label size
    weight: float = 1.0  # of an auxiliary map; the main map always counts once


class Draw(NamedTuple):
    """Where random numbers for a batch come from, so that a draw depends on the sample and not on the process.

    A process that holds rows ``first .. first + B`` of a global batch of ``total`` samples draws for the whole global
    batch and keeps its rows: one process or eight see the same noise on the same sample.
    """

    seed: int
    first: int = 0
    total: int | None = None  # None: the batch at hand is the global batch

    def normal(self, shape: tuple[int, ...], stream: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Standard normal values ``[B, ...]`` of the given shape; ``stream`` numbers independent draws of one batch."""
        total = shape[0] if self.total is None else self.total
        generator = torch.Generator(device).manual_seed(self.seed + stream)
        values = torch.randn((total, *shape[1:]), generator=generator, device=device, dtype=dtype)
        return values[self.first : self.first + shape[0]]
