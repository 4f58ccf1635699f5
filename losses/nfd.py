"""Normalised feature distillation (Liu et al., "Normalized Feature Distillation for Semantic Segmentation", 2022,
arXiv 2207.05256).

arXiv 2604.25530 finds this plain feature loss ahead of losses made for segmentation at equal training time. Neither
paper has published code. The normalisation here is the paper's, over the positions of each channel and image. The
distance is the mean squared difference, so weights of other implementations (sums, norms) do not carry over.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from losses.feature_maps import build_alignment
from utils.types import Output


def standardise_channels(feat: Tensor, eps: float) -> Tensor:
    """Give each channel of each image mean 0 and population variance 1 over its positions. ``[B, C, h, w]``."""
    centred = feat - feat.mean((2, 3), keepdim=True)
    return centred / (centred.square().mean((2, 3), keepdim=True) + eps).sqrt()


def nfd_loss(aligned: Tensor, teacher: Tensor, eps: float = 1e-5) -> Tensor:
    """Compute the mean squared difference of the normalised features.

    aligned: the student's features with the teacher's number of channels, ``[B, C_T, h, w]``.
    teacher: ``[B, C_T, h, w]``. It gets no gradient.
    eps: is added to the variances, so that a dead channel stays 0.
    """
    return F.mse_loss(standardise_channels(aligned, eps), standardise_channels(teacher.detach(), eps))


class NFD(nn.Module):
    """Apply ``nfd_loss`` to the features, with a learned 1x1 convolution where the channels differ."""

    def __init__(self, student_channels: int, teacher_channels: int, num_classes: int) -> None:
        super().__init__()
        self.align = build_alignment(student_channels, teacher_channels)

    def forward(self, student: Output, teacher: Output, label: Tensor) -> Tensor:
        return nfd_loss(self.align(student.feat), teacher.feat)
