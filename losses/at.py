"""Attention transfer (Zagoruyko and Komodakis, ICLR 2017, arXiv 1612.03928, eq. 2)."""

import torch.nn.functional as F
from torch import Tensor, nn

from utils.types import Output


def attention(feat: Tensor) -> Tensor:
    """Features ``[B, C, h, w]`` -> where they are strong: means over channels of squares, unit length ``[B, h w]``."""
    return F.normalize(feat.square().mean(1).flatten(1), dim=1)


def at_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over the B h w positions of the squared difference of the attention maps, as CIRKD's losses/at.py.

    Features ``[B, C, h, w]``, each with its own C; the teacher gets no gradient. A mean of values of about 1 / (h w):
    hence the published weight of 10000.
    """
    return (attention(student) - attention(teacher.detach())).square().mean()


class AT(nn.Module):
    """``at_loss`` on the features."""

    def __init__(self, student_channels: int, teacher_channels: int, num_classes: int) -> None:
        super().__init__()

    def forward(self, student: Output, teacher: Output, label: Tensor) -> Tensor:
        return at_loss(student.feat, teacher.feat)
