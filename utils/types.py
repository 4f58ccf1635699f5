"""The records that models, losses, datasets and the engine exchange."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

Rgb = tuple[int, int, int]  # 0..255
IGNORE_INDEX = 255  # the one ignore label inside the project; every data set maps its own to it
# keys of a record in metrics.jsonl that are neither losses nor scores
LOG_FIELDS = ("event", "iteration", "images_per_second", "cpu_seconds", "memory_gb")


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
