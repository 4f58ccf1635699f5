"""Masked generative distillation (Yang et al., ECCV 2022, arXiv 2205.01529)."""

import torch
from torch import Tensor, nn

from losses.feature_maps import build_alignment
from utils.errors import UserError
from utils.types import Output


def mgd_loss(generated: Tensor, teacher: Tensor) -> Tensor:
    """Compute the sum of the squared differences, divided by the number of images.

    Features ``[B, C, h, w]``; the teacher gets no gradient. An image's sum has C h w values, which is why the published
    weight is 0.00002.
    """
    return (generated - teacher.detach()).square().sum() / len(teacher)


def mask_pixels(feat: Tensor, ratio: float) -> Tensor:
    """Set each pixel to 0 in all channels with probability ``ratio``, by torch's global random state."""
    shape = (len(feat), 1, *feat.shape[-2:])
    return feat * (torch.rand(shape, dtype=feat.dtype, device=feat.device) <= 1 - ratio)


class Generator(nn.Module):
    """Mask the student's features and predict the teacher's from them by two 3x3 convolutions.

    ``[B, C_S, h, w] -> [B, C_T, h, w]``. A 1x1 convolution comes first where C_S and C_T differ.

    Raises:
        UserError: the ratio of masked pixels is not in [0, 1).
    """

    def __init__(self, student_channels: int, teacher_channels: int, ratio: float) -> None:
        super().__init__()
        if not 0 <= ratio < 1:
            raise UserError(f"ratio={ratio:g}: give a share of the pixels that leaves some")
        self.ratio = ratio
        self.align = build_alignment(student_channels, teacher_channels, bias=True)
        self.generation = nn.Sequential(
            nn.Conv2d(teacher_channels, teacher_channels, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(teacher_channels, teacher_channels, 3, padding=1),
        )

    def forward(self, feat: Tensor) -> Tensor:
        return self.generation(mask_pixels(self.align(feat), self.ratio))


class MGD(nn.Module):
    """Apply ``mgd_loss`` to the features, as yzd-v/MGD's seg/, which takes the last map of the backbone instead.

    Options: ratio, the share of masked pixels.

    Raises:
        UserError: the ratio is not in [0, 1).
    """

    def __init__(self, student_channels: int, teacher_channels: int, num_classes: int, ratio: float = 0.75) -> None:
        super().__init__()
        self.generator = Generator(student_channels, teacher_channels, ratio)

    def forward(self, student: Output, teacher: Output, label: Tensor) -> Tensor:
        return mgd_loss(self.generator(student.feat), teacher.feat)
