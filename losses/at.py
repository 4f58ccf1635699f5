"""Attention transfer (Zagoruyko and Komodakis, ICLR 2017, arXiv 1612.03928, eq. 2)."""

import torch.nn.functional as F
from torch import Tensor, nn

from utils.types import Output


def compute_attention(feat: Tensor) -> Tensor:
    """Compute the attention map: the channel mean of squared features, scaled to length 1.

    ``[B, C, h, w] -> [B, h w]``.
    """
    return F.normalize(feat.square().mean(1).flatten(1), dim=1)


def at_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Compute the mean squared difference of the attention maps over the B h w positions, as CIRKD's losses/at.py.

    Features ``[B, C, h, w]``, each network with its own C; the teacher gets no gradient. The squared values of a
    map have the mean 1 / (h w), which is why the published weight is 10000.
    """
    return (compute_attention(student) - compute_attention(teacher.detach())).square().mean()


class AT(nn.Module):
    """Apply ``at_loss`` to the features."""

    def __init__(self, student_channels: int, teacher_channels: int, num_classes: int) -> None:
        super().__init__()

    def forward(self, student: Output, teacher: Output, label: Tensor) -> Tensor:
        return at_loss(student.feat, teacher.feat)
