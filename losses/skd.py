"""Structured knowledge distillation, pair-wise term (Liu et al., CVPR 2019, arXiv 1903.04197, eq. 2).

Its pixel-wise term is ``kd`` and its holistic term ``adv``. The release of CIRKD runs ``kd=1,skd=10,adv=0.001``.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from losses.feature_maps import normalise_pixels
from utils.types import Output


def compute_similarities(feat: Tensor) -> Tensor:
    """Compute the cosines between the 2x2 max-pooled positions of each image, ``[B, C, h, w] -> [B, n, n]``."""
    vectors = normalise_pixels(F.max_pool2d(feat, 2, 2, ceil_mode=True))
    return vectors @ vectors.transpose(1, 2)


def skd_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Compute the mean squared difference of the similarities, as CIRKD's losses/skd.py.

    Features ``[B, C, h, w]``, each network with its own C; the teacher gets no gradient. The peak memory is about four
    matrices of B (h w / 4)^2.
    """
    return F.mse_loss(compute_similarities(student), compute_similarities(teacher.detach()))


class SKD(nn.Module):
    """Apply ``skd_loss`` to the features."""

    def __init__(self, student_channels: int, teacher_channels: int, num_classes: int) -> None:
        super().__init__()

    def forward(self, student: Output, teacher: Output, label: Tensor) -> Tensor:
        return skd_loss(student.feat, teacher.feat)
