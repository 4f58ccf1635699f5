"""Make feature maps of two networks comparable: unit vectors, labels of the same size, equal numbers of channels."""

import torch.nn.functional as F
from torch import Tensor, nn


def normalise_pixels(feat: Tensor) -> Tensor:
    """Turn features ``[B, C, h, w]`` into one vector of length 1 for each pixel, ``[B, h w, C]``."""
    return F.normalize(feat.flatten(2), dim=1).transpose(1, 2)


def shrink_label(label: Tensor, feat: Tensor) -> Tensor:
    """Reduce a label ``[B, H, W]`` to the size of ``feat [B, C, h, w]`` by nearest-neighbour sampling, ``[B, h w]``."""
    return F.interpolate(label.unsqueeze(1).float(), feat.shape[-2:], mode="nearest").flatten(1).long()


def build_alignment(student_channels: int, teacher_channels: int, bias: bool = False) -> nn.Module:
    """Build a 1x1 convolution from student to teacher channels, or an identity where the numbers are equal."""
    if student_channels == teacher_channels:
        return nn.Identity()
    return nn.Conv2d(student_channels, teacher_channels, 1, bias=bias)
