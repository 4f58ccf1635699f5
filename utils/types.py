"""The records that models, losses, datasets and the engine exchange."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from utils.distributed import all_reduce

Rgb = tuple[int, int, int]  # 0..255
IGNORE_INDEX = 255  # the one ignore label inside the project; every data set maps its own to it


def compute_pixel_divisor(label: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """Return the number of labelled pixels of the global batch over the world size: float32, on the device.

    When each rank divides its sum over pixels by this number, the mean of the ranks' gradients is the gradient of the
    mean over the global batch. Every rank must call this, because the ranks add up their counts.

    class_weights: ``[K]``; each pixel then counts as the weight of its class, which gives a weighted mean.
    """
    labelled = label != IGNORE_INDEX
    if class_weights is None:
        count = labelled.sum(dtype=torch.float32)
    else:
        weights = class_weights[label.long().masked_fill(~labelled, 0)]
        count = weights.masked_fill(~labelled, 0).sum(dtype=torch.float32)
    return all_reduce(count, "mean")


def full_precision(x: Tensor) -> Tensor:
    """Return half precision as float32, and every other type as it is."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


class Output(NamedTuple):
    """What every network returns and every loss takes."""

    # [B, K, h, w] at head resolution. One network upsamples its logits: ``PaddedSegmentor`` (--model smp_...), for an
    # image that it had to pad; they then have the image's size, and ``feat`` keeps the stride.
    logits: Tensor
    aux: tuple[Tensor, ...]  # auxiliary logits, possibly empty
    feat: Tensor  # [B, C, h, w], the input of the classifier

    def map(self, change: Callable[[Tensor], Tensor]) -> "Output":
        """Return the output with every map changed."""
        return Output(change(self.logits), tuple(map(change, self.aux)), change(self.feat))


class Supervision(NamedTuple):
    """How one logit map of a network is supervised: the network carries it, the task loss reads it."""

    kind: str = "ce"  # a key of losses.task.CRITERIA
    align_corners: bool = False  # of the bilinear upsampling to label size
    weight: float = 1.0  # of an auxiliary map; the main map always counts once


ROW = 1_000_003  # between the seeds of two rows of a batch: above any number of streams


class Draw(NamedTuple):
    """Where random numbers for a batch come from, so that a draw depends on the sample and not on the process.

    Row ``first + b`` of the global batch has random numbers of its own: one process or eight see the same noise on the
    same sample, and each draws its own rows only.
    """

    seed: int
    first: int = 0

    def normal(self, values: Tensor, stream: int) -> Tensor:
        """Fill ``values [B, ...]`` with standard normal ones; ``stream`` numbers independent draws of one batch."""
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
