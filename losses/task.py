"""The supervised loss: upsample the logits to label size, cross entropy over the pixels that are not ignored."""

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from utils.distributed import all_reduce_mean
from utils.errors import lookup
from utils.types import IGNORE_INDEX, Output, Supervision


def cross_entropy(logits: Tensor, label: Tensor, align_corners: bool) -> Tensor:
    """Mean over valid pixels of the cross entropy of bilinearly upsampled logits (LAD, CIRKD: losses/task).

    logits ``[B, K, h, w]``, label ``[B, H, W]``. The mean is over the valid pixels of the global batch: each process
    divides by the mean count, so that averaging gradients over processes gives the gradient of one process. A batch
    without a valid pixel has loss 0.
    """
    logits = F.interpolate(logits, label.shape[-2:], mode="bilinear", align_corners=align_corners)
    total = F.cross_entropy(logits, label, ignore_index=IGNORE_INDEX, reduction="sum")
    valid = all_reduce_mean((label != IGNORE_INDEX).sum(dtype=total.dtype))
    return total / valid.clamp(min=1)


CRITERIA: dict[str, Callable[[Tensor, Tensor, bool], Tensor]] = {"ce": cross_entropy}


class TaskLoss(nn.Module):
    """Main loss plus weighted auxiliary losses, each map supervised as the network says.

    aux_weight: replaces the weights of the network's auxiliary maps where it is given (LAD: 0.4 for the teacher,
    0.02 for the student).
    """

    def __init__(self, supervision: Sequence[Supervision], aux_weight: float | None = None) -> None:
        super().__init__()
        self.supervision = tuple(supervision)
        for item in self.supervision:
            lookup(CRITERIA, item.kind, "criterion")
        self.aux_weights = tuple(s.weight if aux_weight is None else aux_weight for s in self.supervision[1:])

    def forward(self, output: Output, label: Tensor) -> dict[str, Tensor]:
        """``{"task": main + sum of weight * auxiliary, "ce": main, "aux": unweighted auxiliary sum}``."""
        main, *aux = (
            CRITERIA[s.kind](logits, label, s.align_corners)
            for s, logits in zip(self.supervision, (output.logits, *output.aux), strict=True)
        )
        terms = {"task": main, "ce": main}
        if aux:
            terms["task"] = main + sum(w * a for w, a in zip(self.aux_weights, aux, strict=True))
            terms["aux"] = sum(aux)
        return terms
