"""Feature maps made comparable: pixels as rows, labels at a map's size, equal channels."""

import torch.nn.functional as F
from torch import Tensor, nn


def unit_rows(feat: Tensor) -> Tensor:
    """Features ``[B, C, h, w]`` as vectors of length 1: ``[B, h w, C]``."""
    return F.normalize(feat.flatten(2), dim=1).transpose(1, 2)


def label_rows(label: Tensor, feat: Tensor) -> Tensor:
    """Label ``[B, H, W]`` at the pixels of ``feat [B, C, h, w]``, each the nearest of its own: ``[B, h w]``."""
    return F.interpolate(label.unsqueeze(1).float(), feat.shape[-2:], mode="nearest").flatten(1).long()


def align(student_channels: int, teacher_channels: int, bias: bool = False) -> nn.Conv2d | None:
    """A learned 1x1 convolution from student to teacher channels; none where they are equal."""
    if student_channels == teacher_channels:
        return None
    return nn.Conv2d(student_channels, teacher_channels, 1, bias=bias)
