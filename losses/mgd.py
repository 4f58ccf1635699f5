"""Masked generative distillation (Yang et al., ECCV 2022, arXiv 2205.01529)."""

import torch
from torch import Tensor, nn

from losses.maps import align
from utils.errors import UserError
from utils.types import Output


def mgd_loss(generated: Tensor, teacher: Tensor) -> Tensor:
    """Sum of the squared differences, divided by the number of images: ``[B, C, h, w]``; no teacher gradient.

    A sum over C h w values, hence the published weight of 0.00002.
    """
    return (generated - teacher.detach()).square().sum() / len(teacher)


def masked(feat: Tensor, ratio: float) -> Tensor:
    """Each pixel set to 0, all channels, with probability ``ratio``; it follows torch's global random state."""
    shape = (len(feat), 1, *feat.shape[-2:])
    return feat * (torch.rand(shape, dtype=feat.dtype, device=feat.device) <= 1 - ratio)


class Generator(nn.Module):
    """Student features of its own channels -> masked -> the teacher's features, guessed by two 3x3 convolutions."""

    def __init__(self, student_channels: int, teacher_channels: int, ratio: float) -> None:
        super().__init__()
        if not 0 <= ratio < 1:
            raise UserError(f"ratio={ratio:g}: give a share of the pixels that leaves some")
        self.ratio = ratio
        self.align = align(student_channels, teacher_channels, bias=True)
        self.generation = nn.Sequential(
            nn.Conv2d(teacher_channels, teacher_channels, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(teacher_channels, teacher_channels, 3, padding=1),
        )

    def forward(self, feat: Tensor) -> Tensor:
        return self.generation(masked(feat if self.align is None else self.align(feat), self.ratio))


class MGD(nn.Module):
    """``mgd_loss`` on the features, as yzd-v/MGD's seg/; that takes the backbone's last map. Options: ratio."""

    def __init__(self, student_channels: int, teacher_channels: int, num_classes: int, ratio: float = 0.75) -> None:
        super().__init__()
        self.generator = Generator(student_channels, teacher_channels, ratio)

    def forward(self, student: Output, teacher: Output, label: Tensor) -> Tensor:
        return mgd_loss(self.generator(student.feat), teacher.feat)
