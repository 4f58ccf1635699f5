"""The records that models, losses, datasets and the engine exchange."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Rgb = tuple[int, int, int]  # 0..255
IGNORE_INDEX = 255  # the one ignore label inside the project; every data set maps its own to it


class Output(NamedTuple):
    """Hold the maps that every network returns and every loss takes."""

    # [B, K, h, w] at head resolution. One network upsamples its logits: ``PaddedSegmentor`` (--model smp_...), for an
    # image that it had to pad; they then have the image's size, and ``feat`` keeps the stride.
    logits: Tensor
    aux: tuple[Tensor, ...]  # auxiliary logits, possibly empty
    feat: Tensor  # [B, C, h, w], the input of the classifier

    def map(self, change: Callable[[Tensor], Tensor]) -> "Output":
        """Return the output with every map changed."""
        return Output(change(self.logits), tuple(map(change, self.aux)), change(self.feat))


class Supervision(NamedTuple):
    """Say how the task loss treats one logit map of a network."""

    kind: str = "ce"  # a key of losses.task.CRITERIA
    align_corners: bool = False  # of the bilinear upsampling to label size
    weight: float = 1.0  # of an auxiliary map; the main map always counts once


ROW = 1_000_003  # between the seeds of two rows of a batch: above any number of streams


class Draw(NamedTuple):
    """Draw random numbers for a batch. They depend on the seed and the row in the global batch, not on the rank.

    Row ``first + b`` of the global batch has random numbers of its own. So one rank or eight see the same noise on the
    same sample, and each rank draws its own rows only.
    """

    seed: int
    first: int = 0

    def normal(self, values: Tensor, stream: int) -> Tensor:
        """Fill ``values [B, ...]`` with standard normal numbers, and return it.

        stream: tells independent draws of one batch apart.
        """
        generator = torch.Generator(values.device)
        for b, row in enumerate(values):
            generator.manual_seed(self.seed + stream + ROW * (self.first + b))
            row.normal_(generator=generator)
        return values

    def uniform(self, count: int, stream: int, device: torch.device) -> Tensor:
        """Return one number in [0, 1) for each of ``count`` rows: float32 ``[count]``."""
        generator = torch.Generator(device)
        values = torch.empty(count, device=device)
        for b in range(count):
            generator.manual_seed(self.seed + stream + ROW * (self.first + b))
            values[b : b + 1].uniform_(generator=generator)
        return values
