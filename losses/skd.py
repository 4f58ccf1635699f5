"""Structured knowledge distillation, pair-wise term (Liu et al., CVPR 2019, arXiv 1903.04197, eq. 2).

Its pixel-wise term is ``kd``, its holistic one ``adv``: CIRKD runs ``kd=1,skd=10,adv=0.001``.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from losses.maps import unit_rows
from utils.types import Output


def similarities(feat: Tensor) -> Tensor:
    """Cosines between the 2x2 max-pooled (ceil) positions of each image: ``[B, C, h, w] -> [B, n, n]``."""
    rows = unit_rows(F.max_pool2d(feat, 2, 2, ceil_mode=True))
    return rows @ rows.transpose(1, 2)


def skd_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of the similarities, as CIRKD's losses/skd.py.

    Features ``[B, C, h, w]``, each with its own C; the teacher gets no gradient. Peak memory: about four matrices of
    B (h w / 4)^2.
    """
    return F.mse_loss(similarities(student), similarities(teacher.detach()))


class SKD(nn.Module):
    """``skd_loss`` on the features."""

    def __init__(self, student_channels: int, teacher_channels: int, num_classes: int) -> None:
        super().__init__()

    def forward(self, student: Output, teacher: Output, label: Tensor) -> Tensor:
        return skd_loss(student.feat, teacher.feat)
