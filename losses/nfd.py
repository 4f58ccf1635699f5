"""Normalised feature distillation (Liu et al., "Normalized Feature Distillation for Semantic Segmentation", 2022,
arXiv 2207.05256).

The plain feature loss that arXiv 2604.25530 finds ahead of segmentation's own at equal training time. Neither has
published code: the normalisation is the paper's, over the positions of each channel and image; the distance is the mean
squared difference here, so weights of other implementations (sums, norms) do not carry over.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from losses.maps import align
from utils.types import Output


def normalised(feat: Tensor, eps: float) -> Tensor:
    """Each channel of each image with mean 0 and (population) variance 1 over its positions."""
    centred = feat - feat.mean((2, 3), keepdim=True)
    return centred / (centred.square().mean((2, 3), keepdim=True) + eps).sqrt()


def nfd_loss(student: Tensor, teacher: Tensor, kernel: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """Mean squared difference of the normalised features.

    student ``[B, C_S, h, w]``, teacher ``[B, C_T, h, w]`` (no gradient), kernel ``[C_T, C_S, 1, 1]`` of a 1x1
    convolution before the normalisation, where the channels differ. eps: added to the variances, so that a dead channel
    stays 0.
    """
    mapped = student if kernel is None else F.conv2d(student, kernel)
    return F.mse_loss(normalised(mapped, eps), normalised(teacher.detach(), eps))


class NFD(nn.Module):
    """``nfd_loss`` on the features; the kernel is learned, none where the channels are equal."""

    def __init__(self, student_channels: int, teacher_channels: int, num_classes: int) -> None:
        super().__init__()
        self.align = align(student_channels, teacher_channels)

    def forward(self, student: Output, teacher: Output, label: Tensor) -> Tensor:
        return nfd_loss(student.feat, teacher.feat, self.align and self.align.weight)
